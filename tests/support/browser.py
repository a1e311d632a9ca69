"""Pages in a headless Chromium."""

import subprocess


def browse(server, folder, path, *words):
    """Let a headless Chromium load a page of a server; return the DOM."""
    return load(server.url + path, folder, *words)


def load(url, folder, *words):
    """Let a headless Chromium load a page and run for some seconds of its own time; return the DOM."""
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--ignore-certificate-errors", "--lang=en"]
    done = subprocess.run(
        [
            "chromium",
            *flags,
            f"--user-data-dir={folder / 'chromium'}",
            "--virtual-time-budget=5000",
            *(words or ["--dump-dom"]),
            url,
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout.partition("<script>")[0]


def row(dom, host):
    return next(line for line in dom.split("<tr>") if f"<div>{host}</div>" in line)
