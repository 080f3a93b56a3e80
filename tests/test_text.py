"""Helpers for the text of messages."""

from d2ext.text import did_you_mean, plural, shortened, without_credentials


def test_plural():
    assert [plural(n, "image") for n in (0, 1, 2)] == ["0 images", "1 image", "2 images"]
    assert [plural(n, "class") for n in (1, 3)] == ["1 class", "3 classes"]
    assert [plural(n, "entry") for n in (1, 2)] == ["1 entry", "2 entries"]
    assert plural(2, "day") == "2 days"


def test_shortened():
    assert shortened(["a", "b"], 2) == "a, b"
    assert shortened(("a", "b", "c"), 2) == "a, b, ..."


def test_did_you_mean():
    assert did_you_mean("ballon", ("balloon", "dog")) == "did you mean 'balloon'?"
    assert did_you_mean(7, {"balloon": 1}) == ""


def test_without_credentials():
    for secret in ("postgresql://me:p:/@w@host/db", "http://token@host/db", "redis://:pw@host/db"):
        hidden = f"{secret.partition('://')[0]}://***@host/db"
        assert without_credentials(f"no answer from '{secret}'") == f"no answer from '{hidden}'"
    for same in ("sqlite:////home/me@work/mlflow.db", "http://host:5000/", "me@host"):
        assert without_credentials(same) == same
