"""The list of PyTorch versions, and pairs with cuDNN, with bad 3-D convolutions."""

import warnings

import pytest

from slowfast_kernels import known_issues
from slowfast_kernels.known_issues import matching, parse, parse_cudnn


@pytest.mark.parametrize(
    "torch, cudnn, expected",
    [
        ("2.8.0+cu129", 91002, ["wrong results"]),
        ("2.9.0", 91002, ["several times slower, more memory"]),
        ("2.9.1+cu130", 91301, ["several times slower, more memory", "TF32"]),
        ("2.11.0+cu130", 91501, []),
        ("2.8.0", 90701, []),
        ("2.8.0", 8907, []),
    ],
)
def test_pairs(torch, cudnn, expected):
    issues = [i for i in matching(parse(torch), parse_cudnn(cudnn)) if i.cudnn]
    assert len(issues) == len(expected)
    for issue, text in zip(issues, expected, strict=True):
        assert text in issue.what and "pytorch#" in issue.see


def test_issues_of_the_cpu_need_no_cudnn():
    issues = matching((2, 13, 0), None)
    assert issues and all(i.cudnn is None for i in issues)
    assert any("one input channel" in i.what for i in issues)
    assert not matching((2, 8, 0), None)


def test_versions():
    assert parse("2.13.0+cpu") == (2, 13, 0)
    assert parse_cudnn(91002) == (9, 10, 2) and parse_cudnn(8907) == (8, 9, 7)


def test_each_is_warned_about_once(monkeypatch):
    monkeypatch.setattr(known_issues, "found", lambda: (*known_issues.ISSUES[:2], known_issues.ISSUES[-1]))
    known_issues.warn_once.cache_clear()
    with pytest.warns(UserWarning) as caught:
        known_issues.warn_once()
    assert len(caught) == 2 and "163539" in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        known_issues.warn_once()
    known_issues.warn_once.cache_clear()
