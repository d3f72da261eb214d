"""What tests in a browser wait by."""

from __future__ import annotations


def until(page, true, seconds=20):
    """Playwright's own waiting evaluates text, which the page's policy forbids."""
    for _ in range(20 * seconds):
        if page.evaluate(true):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"never {true}")
