"""The status page: one static file, and the headers that let it run nothing but itself."""

import base64
import hashlib
import re
from importlib.resources import files

from secrun_attest.service.call import Reply

MEDIA_TYPE = "text/html; charset=utf-8"


def load_page() -> Reply:
    """Return the page with a content security policy that names its own style and script by digest."""
    text = files("secrun_attest.service").joinpath("status.html").read_text(encoding="utf-8")
    policy = [
        "default-src 'none'",
        f"style-src {_digest(text, 'style')}",
        f"script-src {_digest(text, 'script')}",
        "connect-src 'self'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
    ]
    return Reply(
        body=text.encode(),
        media=MEDIA_TYPE,
        headers={"content-security-policy": "; ".join(policy), "x-frame-options": "DENY"},
    )


def _digest(text: str, tag: str) -> str:
    (inside,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    digest = hashlib.sha256(inside.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
