"""What is decided about a TPM without one: whose error it is, and whether it is a program."""

import pytest

from secrun_attest.errors import TpmError, TpmTransportError
from secrun_attest.quotefiles import serialized_pcrs
from secrun_attest.record import Bank
from secrun_attest.tpm import TpmKind
from secrun_attest.tss import TpmFacts
from secrun_attest.tsslink import translated


@pytest.mark.parametrize(
    ("code", "kind", "said"),
    [
        (0x000009A2, TpmError, "a password is wrong"),
        (0x00000921, TpmError, "locked after wrong passwords"),
        (0x00000100, TpmError, "was not started"),
        (0x000C0902, TpmError, "no room for another object"),
        (0x000B0143, TpmError, "does not know this command"),
        (0x000001CB, TpmError, "the library's text"),
        # The TPM stopped in the middle of a command, the library, the device or swtpm failed: nobody knows.
        (0x00000101, TpmTransportError, "failed its self-test"),
        (0x00070001, TpmTransportError, "the library's text"),
        (0x0008000B, TpmTransportError, "the library's text"),
        (0x000A000A, TpmTransportError, "the library's text"),
    ],
)
def test_only_an_answer_of_the_tpm_says_that_nothing_happened(code, kind, said):
    error = translated("extend PCR 15", code, "the library's text")
    assert type(error) is kind
    assert error.message.startswith("extend PCR 15: ")
    assert said in error.message


@pytest.mark.parametrize(
    ("manufacturer", "vendor", "kind"),
    [
        ("IBM", "SW   TPM", TpmKind.SOFTWARE),
        ("NEW", "SW TPM", TpmKind.SOFTWARE),
        ("MSFT", "xCG fTPM", TpmKind.SOFTWARE),
        ("GOOG", "vTPM", TpmKind.SOFTWARE),
        ("IFX", "SLB9670", TpmKind.HARDWARE),
        ("INTC", "Intel", TpmKind.HARDWARE),
        ("STM", "SWITCH", TpmKind.HARDWARE),
    ],
)
def test_a_program_is_told_from_a_chip_by_what_it_says(manufacturer, vendor, kind):
    assert TpmFacts(manufacturer=manufacturer, vendor=vendor, firmware=1).kind is kind


def test_the_file_of_pcrs_has_eight_values_to_a_list():
    values = tuple((pcr, bytes([pcr]) * 20) for pcr in range(9))
    data = serialized_pcrs(Bank.SHA1, values)
    assert data[:12].hex() == "010000000400" + "03ff0100" + "0000"
    assert len(data) == 4 + 16 * 8 + 4 + 2 * (4 + 8 * 66)
    first, second = data[136 : 136 + 532], data[136 + 532 :]
    assert (first[:6].hex(), second[:6].hex()) == ("080000001400", "010000001400")
    assert second[6:26] == bytes([8]) * 20
