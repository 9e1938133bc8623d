"""Who is told of alarms is set wholly or not at all; what is wrong stops the start."""

from base64 import b64encode

import pytest

from receiver.errors import SettingsError
from receiver.settings import Settings

KEY = b"canary, of more than 24 bytes"
SECRET = "whsec_" + b64encode(KEY).decode()
URL = "https://alarms.example.com/hook/canary"
HOOK = {"RECEIVER_ALARM_URL": URL, "RECEIVER_ALARM_SECRET": SECRET}
MAIL = {"RECEIVER_ALARM_MAIL_TO": "a@example.com", "RECEIVER_SMTP_URL": "smtp://mail.example.com"}
USER = {**MAIL, "RECEIVER_SMTP_URL": "smtp://me@mail.example.com:587"}


def refusal(environment):
    with pytest.raises(SettingsError) as refused:
        Settings.from_env(environment)
    return str(refused.value)


def test_what_is_set_is_read():
    settings = Settings.from_env(
        {
            **HOOK,
            **USER,
            "RECEIVER_ALARM_MAIL_TO": "a@example.com, b+c@example.com",
            "RECEIVER_ALARM_MAIL_FROM": "r@example.com",
            "RECEIVER_SMTP_PASSWORD": "pw",
            "RECEIVER_ALARM_FAILING_PERCENT": "10",
            "OPEN_CONNECTORS_RETRY_SECONDS": "100 900",
            "RECEIVER_LOG_REQUESTS": "yes",
        }
    )
    assert (settings.alarm_url, settings.alarm_secret) == (URL, KEY)
    assert settings.alarm_mail_to == ("a@example.com", "b+c@example.com")
    assert settings.alarm_mail_from == "r@example.com"
    assert (settings.smtp_url, settings.smtp_password) == (USER["RECEIVER_SMTP_URL"], "pw")
    assert settings.failing_after == 100_000
    assert settings.log_requests is True


def test_secrets_may_stand_in_files_and_are_never_shown(tmp_path):
    for name, content in (("secret", SECRET), ("password", "canary"), ("url", URL)):
        (tmp_path / name).write_text(content + "\n")
    settings = Settings.from_env(
        {
            **USER,
            "RECEIVER_ALARM_URL_FILE": str(tmp_path / "url"),
            "RECEIVER_ALARM_SECRET_FILE": str(tmp_path / "secret"),
            "RECEIVER_SMTP_PASSWORD_FILE": str(tmp_path / "password"),
        }
    )
    assert (settings.alarm_secret, settings.smtp_password) == (KEY, "canary")
    for shown in (repr(settings), str(settings.without_secrets())):
        assert "canary" not in shown
        assert SECRET not in shown
    assert settings.without_secrets()["alarm_url"] == "alarms.example.com"


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({"RECEIVER_ALARM_URL": URL}, "RECEIVER_ALARM_URL and RECEIVER_ALARM_SECRET"),
        ({"RECEIVER_ALARM_SECRET": SECRET}, "RECEIVER_ALARM_URL and RECEIVER_ALARM_SECRET"),
        (dict([next(iter(MAIL.items()))]), "RECEIVER_ALARM_MAIL_TO and RECEIVER_SMTP_URL"),
        (dict([list(MAIL.items())[1]]), "RECEIVER_ALARM_MAIL_TO and RECEIVER_SMTP_URL"),
        (USER, "RECEIVER_SMTP_URL's user and RECEIVER_SMTP_PASSWORD"),
        ({**MAIL, "RECEIVER_SMTP_PASSWORD": "pw"}, "RECEIVER_SMTP_URL's user"),
    ],
)
def test_half_of_a_pair_is_refused(environment, named):
    assert refusal(environment).startswith(named)


def test_plain_http_is_for_hosts_that_are_allowed():
    plain = {**HOOK, "RECEIVER_ALARM_URL": "http://10.0.0.1/hook"}
    assert "must be https" in refusal(plain)
    Settings.from_env({**plain, "RECEIVER_FORWARD_ALLOW": "10.0.0.1"})


@pytest.mark.parametrize(
    ("name", "values"),
    [
        (
            "RECEIVER_ALARM_URL",
            ["x", "ftp://h/", "https://", "https://u:canary@h/", "https://h:0/", "https://h:x/"],
        ),
        (
            "RECEIVER_ALARM_SECRET",
            ["canary", SECRET[6:], "whsec_canary", "whsec_" + 20 * "A", "whsec_" + 200 * "A"],
        ),
        ("RECEIVER_ALARM_MAIL_TO", [",", "canary", "a@", "@b", "a@b c", "a@b\nBcc: c@d"]),
        ("RECEIVER_ALARM_MAIL_FROM", ["canary", "a@b c@d", "a@b\r\nX: y"]),
        (
            "RECEIVER_SMTP_URL",
            ["mail", "http://mail", "smtp://", "smtp://me:canary@mail", "smtp://m/x", "smtp://m?x"],
        ),
        ("RECEIVER_ALARM_FAILING_PERCENT", ["0", "101", "5%"]),
        ("RECEIVER_LOG_REQUESTS", ["1", "true", "YES"]),
    ],
)
def test_what_is_wrong_is_named_and_not_shown(name, values):
    for value in values:
        told = refusal({**HOOK, **MAIL, name: value})
        assert told.startswith(name), value
        assert "\n" not in told
        assert "canary" not in told
