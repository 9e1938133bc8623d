"""Settings: read once, exactly as written; a wrong one is named in one line that never shows it."""

import json
import re
from base64 import urlsafe_b64encode
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from receiver.errors import SettingsError
from receiver.openconnectors.shapes import is_loopback
from receiver.server import log_start
from receiver.settings import FOREVER, Settings, duration_ms, secret_from_file

KEY = "EVENT_NOTIFICATION_SIGNATURE_KEY"
SAP = "https://api.openconnectors.us2.ext.hana.ondemand.com/elements/api-v2"
FERNET = [urlsafe_b64encode(bytes([byte]) * 32).decode() for byte in (0x5A, 0xA5)]
MINUTE, DAY = 60_000, 86_400_000

GOOD = {  # name: (field, {written: read})
    "RECEIVER_DATABASE_URL": (
        "database_url",
        {
            "sqlite:///receiver.db": "sqlite:///receiver.db",
            "sqlite:////var/lib/receiver.db": "sqlite:////var/lib/receiver.db",
            "postgresql://u:p@h:5432/d?x=1": "postgresql+psycopg://u:p@h:5432/d?x=1",
            "postgresql+psycopg://u:p@h/d": "postgresql+psycopg://u:p@h/d",
            "postgres://u:p@h/d": "postgresql+psycopg://u:p@h/d",
            "postgresql:///d?host=/run/pg": "postgresql+psycopg:///d?host=/run/pg",
        },
    ),
    "RECEIVER_ENCRYPTION_KEYS": (
        "encryption_keys",
        {FERNET[0]: (FERNET[0],), f"{FERNET[1]} {FERNET[0]}": (FERNET[1], FERNET[0])},
    ),
    "RECEIVER_PUBLIC_URL": (
        "public_url",
        {
            "https://hooks.example.com": "https://hooks.example.com",
            "https://hooks.example.com:8443/a/": "https://hooks.example.com:8443/a",
            "http://10.0.0.1:8000": "http://10.0.0.1:8000",
            "https://[2001:db8::1]/": "https://[2001:db8::1]",
        },
    ),
    "RECEIVER_MAX_UPLOAD_BYTES": ("max_upload_bytes", {"1": 1, "1073741824": 2**30}),
    "RECEIVER_MAX_BODY_BYTES": ("max_body_bytes", {"1": 1, "1048576": 2**20, "1073741824": 2**30}),
    "RECEIVER_TRUSTED_PROXIES": ("trusted_proxies", {"0": 0, "1": 1, "16": 16}),
    "OPEN_CONNECTORS_URL": (
        "vendor_url",
        {
            SAP: SAP,
            f"{SAP}/": SAP,
            "http://localhost:9000/elements/api-v2": "http://localhost:9000/elements/api-v2",
            "http://127.0.0.1:9000/elements/api-v2": "http://127.0.0.1:9000/elements/api-v2",
            "http://127.9.9.9/elements/api-v2": "http://127.9.9.9/elements/api-v2",
            "http://[::1]:9000/elements/api-v2": "http://[::1]:9000/elements/api-v2",
        },
    ),
    "OPEN_CONNECTORS_RETRY_SECONDS": (
        "vendor_retry_seconds",
        {"1": (1,), "4 16 64": (4, 16, 64), "8  64": (8, 64)},
    ),
    "OPEN_CONNECTORS_RATE": ("vendor_rate", {"1": 1.0, "0.25": 0.25, "10": 10.0}),
    "RECEIVER_FORWARD_ALLOW": (
        "forward_allow",
        {"10.0.0.5": {"10.0.0.5"}, "Hooks.internal  ::1": {"hooks.internal", "::1"}},
    ),
    "RECEIVER_API_RATE": ("api_rate", {"1": 1, "600": 600}),
    "RECEIVER_OVERDUE_AFTER": (
        "overdue_after",
        {"90s": 90_000, "15m": 15 * MINUTE, "2h": 120 * MINUTE},
    ),
    "RECEIVER_KEEP_BODIES": ("keep_bodies", {"1d": DAY, "90d": 90 * DAY, "forever": FOREVER}),
    "RECEIVER_KEEP_EVENTS": ("keep_events", {"1d": DAY, "400d": 400 * DAY}),
}

BAD_URLS = [
    *("hooks.example.com", "//hooks.example.com", "ftp://hooks.example.com", "https://", "x"),
    *("https://:443", "https://h.example:0", "https://h.example:99999", "https://h.example:x"),
    *("https://[::1", "https://u:pw@h.example", "https://u@h.example", "https://@h.example"),
    *("https://h.example/?a=b", "https://h.example/#a"),
]
# A URL that no address bar would show like this; paths are put behind it as it is.
BROKEN_URLS = [
    *("https://h.example?", "https://h.example#", "https://h.example\n", " https://h.example"),
    *("https://h .example", "https://h.exa\nmple", "https://h.example/\t", "https://h.example/\0"),
]
BAD_DURATIONS = ["0m", "15", "m", "15 m", "-1m", "1.5h", "15M", "1w", "01h", "1h30m", "\u0661h"]
BAD = {
    "RECEIVER_DATABASE_URL": [
        *("receiver.db", "sqlite://", "sqlite:///", "sqlite://receiver.db", "sqlite:///:memory:"),
        *("postgresql+psycopg2://u:pw@h/d", "postgresql+asyncpg://u:pw@h/d"),
        *("postgresql://u:pw@h:65536/d", "postgresql://h:0", "postgresql://u:pw@[::1]:99999/d?x=1"),
        *("sqlite:///receiver.db?mode=ro", "sqlite:////a/receiver.db?"),
    ],
    "RECEIVER_ENCRYPTION_KEYS": [*("pw", FERNET[0][:-1], f"{FERNET[0]} pw", "\u00e4" * 44, " ")],
    "RECEIVER_PUBLIC_URL": BAD_URLS,
    "RECEIVER_MAX_UPLOAD_BYTES": ["0", "-1", "1G", "9999999999999"],
    "RECEIVER_MAX_BODY_BYTES": ["0", "-1", "1e6", "1MB", "1073741825", "1_000", "\u0661", "+1"],
    "RECEIVER_TRUSTED_PROXIES": ["-1", "17", "one", "*", "1.0", "9" * 5000],
    "OPEN_CONNECTORS_URL": [
        *BAD_URLS,
        *("https://api.example.com", "https://api.example.com/elements/api-v2/hubs"),
        *("http://api.example.com/elements/api-v2", "http://0.0.0.0/elements/api-v2"),
        *("http://127.0.0.1.example.com/elements/api-v2", "http://localhost.a/elements/api-v2"),
        *("http://10.0.0.1/elements/api-v2", "http://[fe80::1]/elements/api-v2"),
        *("http://2130706433/elements/api-v2", "http://127.0.0.1@a.example/elements/api-v2"),
    ],
    "OPEN_CONNECTORS_RETRY_SECONDS": ["0", "8,64", "8 -1", "8 x", " 8", "8 ", "1.5", "9" * 10],
    "OPEN_CONNECTORS_RATE": ["0", "0.0", "-1", "fast", "nan", "inf", "1e3", ".5", "1/s", "10000"],
    "RECEIVER_FORWARD_ALLOW": ["https://h.example", "h/pw", "pw@h", "h,i", "\u00e4.example", "*"],
    "RECEIVER_API_RATE": ["0", "-1", "1.5", "60/m", "1000000001"],
    "RECEIVER_OVERDUE_AFTER": BAD_DURATIONS,
    "RECEIVER_KEEP_BODIES": BAD_DURATIONS,
    "RECEIVER_KEEP_EVENTS": BAD_DURATIONS,
}
# What may end a secret as it stands in a file.
secrets = st.binary(max_size=20) | st.text("ab \r\n", max_size=6).map(str.encode)


def rows(table: dict[str, list[str]]) -> list[tuple[str, str]]:
    return [(name, value) for name, values in table.items() for value in values]


def read(**environment: str) -> Settings:
    return Settings.from_env(environment)


def is_refused(name: str, value: str) -> bool:
    try:
        Settings.from_env({name: value})
    except SettingsError:
        return True
    return False


def refusal(environment: dict[str, str]) -> str:
    with pytest.raises(SettingsError) as refused:
        Settings.from_env(environment)
    return str(refused.value)


def assert_names_it_in_one_line(text: str, name: str, value: str) -> None:
    assert re.match(rf"(the file that )?{name}(_FILE)? ", text)
    assert text.isprintable()
    examples = "https://hooks.example.com|sqlite:///PATH|postgresql.psycopg://"
    shown = re.sub(examples, "", text).removeprefix(name)
    assert len(value) < 3 or value not in shown
    assert "pw" not in shown


@pytest.fixture
def write(tmp_path: Path):
    """Write a file; give its path."""

    def writer(content: bytes) -> str:
        path = tmp_path / f"setting-{len(list(tmp_path.iterdir()))}"
        path.write_bytes(content)
        return str(path)

    return writer


def test_without_an_environment_the_defaults_hold():
    assert read() == Settings()
    assert {field: getattr(Settings(), field) for field, _ in GOOD.values()} == {
        "database_url": "sqlite:///receiver.db",
        "encryption_keys": (),
        "public_url": None,
        "max_body_bytes": 1_048_576,
        "max_upload_bytes": 2**30,
        "trusted_proxies": 0,
        "vendor_url": SAP,
        "vendor_retry_seconds": (8, 64, 512, 4096, 32768),
        "vendor_rate": 1.0,
        "forward_allow": frozenset(),
        "overdue_after": 15 * MINUTE,
        "api_rate": 600_000,
        "keep_bodies": 90 * DAY,
        "keep_events": 400 * DAY,
    }
    assert Settings().default_keys == ()


@pytest.mark.parametrize("name", GOOD)
def test_a_good_value_is_read(name):
    field, values = GOOD[name]
    assert {written: getattr(read(**{name: written}), field) for written in values} == values


@pytest.mark.parametrize("name", GOOD)
def test_a_value_may_stand_in_a_file_with_or_without_a_line_end(name, write):
    field, values = GOOD[name]
    files = {
        written: [write(written.encode() + end) for end in (b"", b"\n", b"\r\n")]
        for written in values
    }
    for written, paths in files.items():
        read_from = [getattr(read(**{f"{name}_FILE": path}), field) for path in paths]
        assert read_from == [values[written]] * 3


@pytest.mark.parametrize(("name", "value"), rows(BAD))
def test_a_bad_value_is_named_in_one_line_and_not_shown(name, value):
    assert_names_it_in_one_line(refusal({name: value}), name, value)


def test_a_url_to_which_no_path_can_be_appended_is_refused():
    assert [url for url in BROKEN_URLS if not is_refused("RECEIVER_PUBLIC_URL", url)] == []


def test_a_vendors_url_with_blanks_is_refused():
    urls = ["http://loc\nalhost/elements/api-v2", f" {SAP}", SAP.replace("api.", "a pi.", 1)]
    assert [url for url in urls if not is_refused("OPEN_CONNECTORS_URL", url)] == []


def test_encryption_keys_with_anything_else_between_them_are_refused():
    lists = [separator.join(FERNET) for separator in (",", ";", ", ", "", "=")]
    lists += [
        f'"{FERNET[0]}"',
        f"{FERNET[0]}x",
        f"{FERNET[0]}=",
        f"{FERNET[0][:20]}!{FERNET[0][20:]}",
    ]
    assert [keys for keys in lists if not is_refused("RECEIVER_ENCRYPTION_KEYS", keys)] == []


@pytest.mark.parametrize(("name", "value"), rows(BAD))
def test_a_bad_value_in_a_file_is_refused_just_so(name, value, write):
    text = refusal({f"{name}_FILE": write(value.encode())})
    assert_names_it_in_one_line(text, name, value)


@pytest.mark.parametrize("name", [*GOOD, KEY, f"{KEY}_PREVIOUS"])
def test_a_setting_that_is_half_set_is_named(name, write, tmp_path):
    current = {KEY: "current"} if name.endswith("_PREVIOUS") else {}
    empty = f"{name} is set but empty: unset it or give it a value"
    assert [refusal(current | {half: ""}) for half in (name, f"{name}_FILE")] == [empty] * 2
    refusals = [
        {name: "a", f"{name}_FILE": write(b"b")},
        {f"{name}_FILE": write(b"")},
        {f"{name}_FILE": write(b"\n")},
        {f"{name}_FILE": str(tmp_path / "missing")},
        {f"{name}_FILE": str(tmp_path)},
        {f"{name}_FILE": "a\0b"},
    ]
    for environment in refusals:
        assert_names_it_in_one_line(refusal(current | environment), name, str(tmp_path))


@pytest.mark.parametrize("name", GOOD)
def test_a_value_that_is_not_utf_8_is_refused(name, write):
    assert refusal({name: "pw\udcff"}) == f"{name} is not UTF-8 text"
    assert refusal({f"{name}_FILE": write(b"pw\xff")}) == f"{name} is not UTF-8 text"


def test_names_that_are_not_ours_are_ignored():
    assert read(PATH="/bin", RECEIVER_NONSENSE="1", receiver_max_body_bytes="x") == Settings()


def ring(**environment: str) -> list[tuple[str, bytes]]:
    return [(key.id, key.secret) for key in read(**environment).default_keys]


def test_the_current_key_comes_before_its_predecessor():
    assert ring(**{KEY: "new"}) == [("environment", b"new")]
    assert ring(**{KEY: "new", f"{KEY}_PREVIOUS": "old"}) == [
        ("environment", b"new"),
        ("environment-previous", b"old"),
    ]


def test_a_previous_key_without_a_current_one_is_half_a_setting(write):
    for environment in ({f"{KEY}_PREVIOUS": "pw"}, {f"{KEY}_PREVIOUS_FILE": write(b"pw")}):
        assert_names_it_in_one_line(refusal(environment), f"{KEY}_PREVIOUS", "pw")


@pytest.mark.parametrize("secret", ["pw\0", "\0"])
def test_a_key_that_equals_another_under_hmac_is_refused(secret, write):
    path = write(secret.encode())
    assert_names_it_in_one_line(refusal({f"{KEY}_FILE": path}), KEY, secret)
    both = {KEY: "current", f"{KEY}_PREVIOUS_FILE": path}
    assert_names_it_in_one_line(refusal(both), f"{KEY}_PREVIOUS", secret)


@pytest.mark.parametrize(
    "secret", [b" pw ", b'"pw"', b"pw\t", b"p\nw", b"\xffpw\xfe", b"\xef\xbb\xbfpw", b"p\0w"]
)
def test_a_key_is_its_bytes_untouched(secret, write):
    assert ring(**{f"{KEY}_FILE": write(secret + b"\n")}) == [("environment", secret)]
    from_environment = secret.decode("utf-8", "surrogateescape")  # as os.environ decodes it
    assert ring(**{KEY: from_environment}) == [("environment", secret)]


def test_a_key_in_the_environment_keeps_its_line_end():
    assert ring(**{KEY: "key\n"}) == [("environment", b"key\n")]


@given(secret=secrets, end=st.sampled_from([b"\n", b"\r\n"]))
def test_of_a_secrets_file_one_final_line_end_is_dropped_and_nothing_else(
    tmp_path_factory, secret, end
):
    path = tmp_path_factory.getbasetemp() / "secret"
    path.write_bytes(secret + end)
    # A CR that stood before an LF is a part of the line end.
    assert secret_from_file(path) == (secret.removesuffix(b"\r") if end == b"\n" else secret)
    if not secret.endswith(b"\n"):
        path.write_bytes(secret)
        assert secret_from_file(path) == secret


@given(st.integers(1, 10**9 - 1), st.sampled_from("smhd"))
def test_a_duration_is_a_number_and_a_unit(number, unit):
    seconds = {"s": 1, "m": 60, "h": 3600, "d": 86_400}[unit]
    assert duration_ms(f"{number}{unit}") == number * seconds * 1000


def test_only_loopback_means_this_machine():
    hosts = {
        "localhost": True,
        "127.0.0.1": True,
        "127.255.255.254": True,
        "::1": True,
        "": False,
        "0.0.0.0": False,
        "::": False,
        "10.0.0.1": False,
        "169.254.169.254": False,
        "localhost.example.com": False,
        "127.1": False,
        "2130706433": False,
    }
    assert {host: is_loopback(host) for host in hosts} == hosts


def test_settings_never_show_a_secret():
    settings = read(
        **{
            KEY: "canary-current",
            f"{KEY}_PREVIOUS": "canary-previous",
            "RECEIVER_DATABASE_URL": "postgresql://u:canary-password@h/d",
            "RECEIVER_ENCRYPTION_KEYS": FERNET[0],
        }
    )
    for text in (repr(settings), str(settings), f"{[settings]}"):
        assert "canary" not in text
        assert FERNET[0] not in text


def test_the_server_warns_of_misspelled_settings_and_not_of_kubernetes_variables(
    monkeypatch, capsys
):
    environment = {
        "RECEIVER_OVERDU_AFTER": "15m",
        "RECEIVER_FLAVOUR": "sweet",
        "OPEN_CONECTORS_URL": "https://vendor.example.com",
        "RECEIVER_DATABASE_URL_FILE": "/run/url",
        "RECEIVER_TOKEN": "is read from a file alone",
        "RECEIVER_TOKEN_FILE": "token",
        "RECEIVER_PORT": "tcp://10.0.0.1:8000",
        "RECEIVER_PORT_8000_TCP_ADDR": "10.0.0.1",
        "RECEIVER_SERVICE_HOST": "10.0.0.1",
        "PATH": "/bin",
    }
    monkeypatch.setattr("os.environ", environment)
    log_start(SimpleNamespace(cfg=SimpleNamespace(workers=2)))
    lines = map(json.loads, capsys.readouterr().err.splitlines())
    assert [(line["name"], line["did_you_mean"]) for line in lines if "name" in line] == [
        ("OPEN_CONECTORS_URL", "OPEN_CONNECTORS_URL"),
        ("RECEIVER_FLAVOUR", None),
        ("RECEIVER_OVERDU_AFTER", "RECEIVER_OVERDUE_AFTER"),
        ("RECEIVER_TOKEN", "RECEIVER_TOKEN_FILE"),
    ]
