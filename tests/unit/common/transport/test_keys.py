"""Key files and the secrets of Redis: made once, private, rotated, refused by name; never printed."""

from __future__ import annotations

import stat
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from vcppo.common.config import VcppoConfig
from vcppo.common.config.checks import config_warnings
from vcppo.common.errors import ConfigError
from vcppo.common.store.access import credentials
from vcppo.common.transport.keys import ROLES, KeysError, load_keys, make_keys, public_key, rotate_keys
from vcppo.deploy.terminal.keys_command import ACL_FILE, PASSWORD_FILE, acl_text, make_redis_access, show_keys

BASE = {"model": {"path": "some/model"}, "redis": {"url": "redis://store:6379/0"}}


def config(**sections: dict[str, object]) -> VcppoConfig:
    return VcppoConfig.model_validate({**BASE, **sections})


def test_keys_are_made_once_and_are_private(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    assert make_keys(folder) == list(ROLES)
    before = {role: public_key(folder, role) for role in ROLES}
    assert len(set(before.values())) == 3
    assert make_keys(folder) == []
    assert {role: public_key(folder, role) for role in ROLES} == before
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}


def test_a_process_has_its_own_secret_and_its_peers_public_keys(tmp_path: Path) -> None:
    make_keys(tmp_path)
    for name in ("generator.key_secret", "learner.key_secret"):
        (tmp_path / name).unlink()  # what a buffer's container is not given
    keys = load_keys(tmp_path, "buffer")
    assert keys.peers == {"generator": (public_key(tmp_path, "generator"),)}
    assert keys.secret.decode() not in repr(keys)


def test_after_a_rotation_the_key_before_is_let_in_once_more(tmp_path: Path) -> None:
    make_keys(tmp_path)
    first = public_key(tmp_path, "generator")
    rotate_keys(tmp_path, ["generator"])
    second = public_key(tmp_path, "generator")
    assert load_keys(tmp_path, "buffer").peers["generator"] == (second, first)
    rotate_keys(tmp_path, ["generator"])
    assert load_keys(tmp_path, "buffer").peers["generator"] == (public_key(tmp_path, "generator"), second)


@pytest.mark.parametrize("text", ["", "nothing of the kind", 'curve\n    public-key = "short"\n'])
def test_what_is_no_key_is_refused_by_name(tmp_path: Path, text: str) -> None:
    make_keys(tmp_path)
    (tmp_path / "buffer.key_secret").write_text(text)
    with pytest.raises(KeysError, match=r"buffer\.key_secret.*vcppo keys"):
        load_keys(tmp_path, "buffer")


def test_missing_keys_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(KeysError, match=r"security\.keys: .*generator\.key_secret"):
        load_keys(tmp_path, "generator")


@pytest.mark.parametrize(
    ("endpoint", "host", "wanted"),
    [
        ("tcp://127.0.0.1:5755", "127.0.0.1", False),
        ("ipc:///tmp/socket", "localhost", False),
        ("tcp://buffer:5755", "127.0.0.1", True),
        ("tcp://127.example.org:5755", "127.0.0.1", True),
        ("tcp://[::1]:5755", "127.0.0.1", False),
        ("tcp://0.0.0.0:5755", "127.0.0.1", True),
        ("tcp://127.0.0.1:5755", "10.0.0.7", True),
    ],
)
def test_curve_is_on_by_default_where_others_reach_the_ports(endpoint: str, host: str, wanted: bool) -> None:
    changes: dict[str, dict[str, object]] = {
        "transport": {"endpoints": [endpoint]},
        "generator": {"control_host": host},
    }
    assert config(**changes).uses_curve is wanted
    assert config(**changes, security={"curve": "always"}).uses_curve
    off = config(**changes, security={"curve": "never"})
    assert not off.uses_curve
    assert any("security.curve" in line for line in config_warnings(off)) is wanted


@pytest.mark.parametrize("url", ["redis://user:hunter2@store:6379/0", "redis://store:6379/0?password=hunter2"])
def test_a_password_in_the_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"redis\.url: holds a password.*redis\.password_file") as caught:
        config(redis={"url": url})
    assert "hunter2" not in str(caught.value).split("[type=")[0]


@pytest.mark.parametrize("url", ["redis://[::1", "redis://:hunter2@store:port/0"])
def test_half_a_url_is_refused_by_the_name_of_its_field(url: str) -> None:
    with pytest.raises(ValueError, match=r"redis\.url is no URL \(.*\): write it as redis://host:port/0") as caught:
        config(redis={"url": url})
    assert "hunter2" not in str(caught.value).split("[type=")[0]


def test_a_certificate_authority_without_tls_is_refused() -> None:
    with pytest.raises(ValueError, match=r"redis\.ca_file = 'ca\.pem' is of no use"):
        config(redis={"url": "redis://store:6379/0", "ca_file": "ca.pem"})


def test_the_password_comes_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VCPPO_REDIS_PASSWORD", raising=False)
    assert credentials(config()).password is None
    monkeypatch.setenv("VCPPO_REDIS_PASSWORD", "from the environment")
    assert credentials(config(redis={"url": "redis://store/0"})).password == "from the environment"
    assert credentials(config(redis={"url": "unix:///run/redis.sock"})).password is None  # the embedded server
    file = tmp_path / "password"
    file.write_text("from a file\n")
    found = credentials(
        config(redis={"url": "rediss://store/0", "password_file": str(file), "username": "u", "ca_file": "c"})
    )
    assert found.as_options() == {"username": "u", "password": "from a file", "ssl_ca_certs": "c"}
    assert "file" not in repr(found)


@pytest.mark.parametrize("text", [None, "", "\n"])
def test_no_password_where_one_is_named_is_an_error(tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "password"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigError, match=r"redis\.password_file = .*vcppo keys"):
        credentials(config(redis={"url": "redis://store/0", "password_file": str(file)}))


def test_the_acl_names_our_keys_and_not_the_password() -> None:
    text = acl_text("hunter2")
    assert "hunter2" not in text
    assert "user default off" in text
    assert "~vcppo:* resetchannels -@all" in text
    assert not {"+keys", "+flushall", "+config", "+@all"} & set(text.split())


def test_a_key_with_brackets_is_shown_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Z85 has brackets: one key in some ten thousand reads like markup, and ended the command."""
    monkeypatch.setattr("vcppo.deploy.terminal.keys_command.public_key", lambda folder, role: b"a[/EkN]b[bold]")
    out = StringIO()
    show_keys(tmp_path, [], Console(file=out, width=200))
    assert out.getvalue().count("a[/EkN]b[bold]") == 3


def test_vcppo_keys_shows_what_there_is_and_no_secret(tmp_path: Path) -> None:
    out = StringIO()
    show_keys(tmp_path, [], Console(file=out, width=200))
    assert out.getvalue().count("made") == 4
    out = StringIO()
    show_keys(tmp_path, ["learner"], Console(file=out, width=200))
    text = out.getvalue()
    assert text.count("rotated") == 1
    assert "made" not in text
    secrets = [path.read_text() for path in tmp_path.glob("*.key_secret")]
    assert all(line.split('"')[1] not in text for each in secrets for line in each.splitlines() if "secret-key" in line)
    assert (tmp_path / PASSWORD_FILE).read_text().strip() not in text
    assert not make_redis_access(tmp_path)
    assert (tmp_path / ACL_FILE).exists()
