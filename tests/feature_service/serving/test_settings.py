"""Who may use a service, and what it may be asked."""

from __future__ import annotations

import dataclasses

import pytest

from feature_service.serving.settings import Limits, check_address, owner_of, read_tokens
from lfmim.schema import InputError

LONG, OTHER = "a-token-of-20-letters", "another-of-20-letters"


def test_tokens_have_names(tmp_path):
    path = tmp_path / "tokens"
    path.write_text(f"# who\n\nann: {LONG}\nbob:{OTHER}\n")
    tokens = read_tokens(path)
    assert tokens == {"ann": LONG, "bob": OTHER}
    assert [owner_of(given, tokens) for given in (LONG, OTHER)] == ["ann", "bob"]
    assert [owner_of(given, tokens) for given in ("", LONG[:-1], f"{LONG}x", "é")] == [None] * 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no line name:token"),
        ("ann:short\n", "line 1: is no name:token"),
        (f"{LONG}\n", "line 1: is no name:token"),
        (f"../ann:{LONG}\n", "line 1: is no name:token"),
        (f"ann:{LONG}\nbob:{LONG}\n", "line 2: the name or its token stands there twice"),
        (f"ann:{LONG}\nann:{OTHER}\n", "line 2: the name or its token stands there twice"),
    ],
)
def test_a_token_file_that_is_none_is_told_without_its_tokens(tmp_path, text, message):
    path = tmp_path / "tokens"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as told:
        read_tokens(path)
    assert LONG not in str(told.value)


def test_a_token_file_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_tokens(tmp_path / "none")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.3.4.5"])
def test_this_machine_needs_no_tokens(host):
    check_address(host, "")


def test_others_need_tokens():
    check_address("0.0.0.0", "tokens")
    for host in ("0.0.0.0", "::", "192.168.1.2"):
        with pytest.raises(InputError, match="give --token_file"):
            check_address(host, "")
    with pytest.raises(InputError, match="is no address"):
        check_address("example", "tokens")


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(Limits)])
def test_limits_are_positive(field):
    with pytest.raises(InputError, match=f"limits.{field}"):
        Limits(**{field: 0})
