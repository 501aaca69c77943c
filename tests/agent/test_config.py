"""agent.toml: the manual's file, and every kind of mistake as one line."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cosmian_vm.agent.config import AppConfig, ServiceType, load, parse
from cosmian_vm.errors import ConfigError

MANUAL = """
[agent]
data_storage = "/var/lib/cosmian_vm/"
host = "0.0.0.0"
port = 5355
ssl_certificate = "data/cosmianvm.cosmian.dev/cert.pem"
ssl_private_key = "data/cosmianvm.cosmian.dev/key.pem"
tpm_device = "/dev/tpmrm0"

[app]
service_type = "supervisor"
service_name = "cosmian_helloworld"
app_storage = "data/app"
"""
OWNER = "ed25519:" + base64.urlsafe_b64encode(bytes(range(32))).decode().rstrip("=")
MINIMAL = '[agent]\ndata_storage = "/s"\nssl_certificate = "c"\nssl_private_key = "/abs/k"\n'


def test_the_manuals_file() -> None:
    config = parse(MANUAL.encode(), "agent.toml")
    assert config.data_storage == Path("/var/lib/cosmian_vm")
    assert (config.host, config.port) == ("0.0.0.0", 5355)
    assert config.ssl_certificate == Path("/var/lib/cosmian_vm/data/cosmianvm.cosmian.dev/cert.pem")
    assert config.tpm_device == "/dev/tpmrm0"
    assert config.container == Path("/var/lib/cosmian_vm/container")
    assert config.container_pcrs == (4, 7, 8, 9, 12, 14)
    assert config.container_size == 500_002_816
    assert config.owners is None
    assert config.app == AppConfig(
        service_type=ServiceType.SUPERVISOR,
        service_name="cosmian_helloworld",
        storage=Path("/var/lib/cosmian_vm/data/app"),
    )


def test_defaults_and_paths() -> None:
    config = parse(MINIMAL.encode(), "f")
    assert (config.host, config.port, config.tpm_device, config.app) == ("127.0.0.1", 5355, None, None)
    assert (config.ssl_certificate, config.ssl_private_key) == (Path("/s/c"), Path("/abs/k"))
    assert (config.data, config.tmp) == (Path("/s/data"), Path("/s/tmp"))
    assert parse((MINIMAL + 'container = "none"').encode(), "f").container is None
    assert parse((MINIMAL + 'container = "/disk2/c"').encode(), "f").container == Path("/disk2/c")
    assert parse((MINIMAL + 'container_size = "2GB"').encode(), "f").container_size == 2_000_003_072
    assert parse((MINIMAL + 'container_pcrs = "7,4"').encode(), "f").container_pcrs == (4, 7)
    assert parse((MINIMAL + 'owners = "anyone"').encode(), "f").owners == "anyone"
    assert parse((MINIMAL + f'owners = ["{OWNER}"]').encode(), "f").owners == (OWNER,)
    app = parse((MINIMAL + APP.format("a") + 'user = "www-data"').encode(), "f").app
    assert app is not None
    assert app.user == "www-data"


APP = '\n[app]\nservice_type = "standalone"\nservice_name = "{}"\napp_storage = "data/app"\n'


@pytest.mark.parametrize("name", ["app", "my-app_2.0", "app@1.service", "group:app", "/opt/app/bin/app"])
def test_service_names(name: str) -> None:
    app = parse((MINIMAL + APP.format(name)).encode(), "f").app
    assert app is not None
    assert app.service_name == name


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "agent: is missing; expected is the section [agent]"),
        ("agent = 5", "agent: expected is the section"),
        ("[agent]", "[agent] data_storage: is missing"),
        (MINIMAL.replace('"/s"', '"s"'), "[agent] data_storage: expected is an absolute path"),
        (MINIMAL.replace('"/s"', "5"), "[agent] data_storage: expected is a string"),
        (MINIMAL.replace('"c"', '""'), "[agent] ssl_certificate: expected is a string"),
        (MINIMAL.replace('"c"', '"a\\u0000b"'), "[agent] ssl_certificate: expected is a string"),
        (MINIMAL + "port = 0", "[agent] port: expected is a port"),
        (MINIMAL + "port = 65536", "[agent] port: expected is a port"),
        (MINIMAL + "port = true", "[agent] port: expected is a port"),
        (MINIMAL + 'port = "5355"', "[agent] port: expected is a port"),
        (MINIMAL + "host = 127", "[agent] host: expected is a string"),
        (MINIMAL + "prot = 1", "[agent] prot: unknown key; did you mean port? expected are data_storage,"),
        (MINIMAL + "zzz = 1", "[agent] zzz: unknown key; expected are data_storage,"),
        (
            MINIMAL.replace("data_storage", "data_storag"),
            "[agent] data_storag: unknown key; did you mean data_storage?",
        ),
        (MINIMAL.replace("ssl_private_key", "ssl_key"), "[agent] ssl_key: unknown key; did you mean ssl_private_key?"),
        (
            MINIMAL + APP.replace("app_storage", "storage").format("app"),
            "[app] storage: unknown key; did you mean app_s",
        ),
        (MINIMAL.replace("[agent]", "[agnet]"), "agnet: unknown key; did you mean agent?"),
        (MINIMAL + 'container = "none"\ncontainer_size = "2GB"', "[agent] container_size: has no effect, there is no"),
        (MINIMAL + 'container = "none"\ncontainer_pcrs = "7"', "[agent] container_pcrs: has no effect, there is no"),
        (MINIMAL + 'owners = "everyone"', '[agent] owners: expected is "anyone"'),
        (MINIMAL + 'owners = ["anyone"]', "[agent] owners: 'anyone' is no owner's fingerprint: expected is ed25519:"),
        (MINIMAL + "owners = []", '[agent] owners: expected is "anyone"'),
        (MINIMAL + "owners = [5]", '[agent] owners: expected is "anyone"'),
        (MINIMAL + f'owners = ["{OWNER}", "{OWNER}"]', "[agent] owners: expected are 16 owners at most, each once"),
        (MINIMAL + f'owners = ["{OWNER}="]', "is not base64url"),
        (MINIMAL + f'owners = ["ed25519:{"A" * 43}"]', "of small order"),
        (MINIMAL + APP.format("all").replace("standalone", "supervisor"), "[app] service_name: is 'all'"),
        (MINIMAL + APP.format("a").replace("data/app", "../../etc"), "[app] app_storage: has '..' in it"),
        (MINIMAL + APP.format("a").replace("data/app", "/var/lib/../../etc"), "[app] app_storage: has '..' in it"),
        (MINIMAL + APP.format("a") + 'user = "a b"', "[app] user: expected is the name"),
        (MINIMAL + APP.format("a") + 'user = "../root"', "[app] user: expected is the name"),
        (MINIMAL + "container = false", "[agent] container: expected is a string"),
        (MINIMAL + "container_size = 500", "[agent] container_size: expected is a string"),
        (MINIMAL + 'container_size = "500"', "[agent] container_size: size '500': expected is a number with a unit"),
        (MINIMAL + "container_pcrs = 7", "[agent] container_pcrs: expected is a string"),
        (MINIMAL + 'container_pcrs = "7+seven"', "[agent] container_pcrs: PCRs '7+seven': expected are numbers"),
        (MINIMAL + 'container_pcrs = "10"', "[agent] container_pcrs: PCR 10: IMA extends it"),
        (MINIMAL + 'container_pcrs = "16"', "[agent] container_pcrs: PCRs: expected are some of 0 to 15"),
        (MINIMAL + "\n[other]\n", "other: unknown key; expected are agent, app"),
        (MINIMAL + "\n[app]\n", "[app] service_type: is missing"),
        (MINIMAL + '\n[app]\nservice_type = "cron"', "[app] service_type: is 'cron'; expected is one of supervisor"),
        (MINIMAL + APP.format("-rf"), "[app] service_name: expected is"),
        (MINIMAL + APP.format("a b"), "[app] service_name: expected is"),
        (MINIMAL + APP.format("../app"), "[app] service_name: expected is"),
        (MINIMAL + APP.format("/opt/../app"), "[app] service_name: expected is"),
        (MINIMAL + APP.format("/opt/").replace("standalone", "systemd"), "[app] service_name: expected is"),
        (MINIMAL + APP.format("app") + "x = 1", "[app] x: unknown key"),
        (MANUAL.replace('"/dev/tpmrm0"', '"/dev/tpmrm0'), "not TOML: "),  # as the manual printed it
        ('[agent]\n"a\\nb" = 1', "[agent] 'a\\nb': unknown key"),
        (MINIMAL + '"a\\nb" = 1', "unknown key"),
    ],
)
def test_mistakes_are_one_line_naming_file_key_and_remedy(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text.encode(), "/etc/agent.toml")
    line = str(caught.value)
    assert line.startswith("/etc/agent.toml: ")
    assert words in line
    assert "\n" not in line


def test_not_utf8_and_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not UTF-8 at offset 0x3"):
        parse(b"# \n\xff", "f")
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load(tmp_path)
    (tmp_path / "big").write_bytes(b"#" * (2 << 20))
    with pytest.raises(ConfigError, match="larger than"):
        load(tmp_path / "big")
    (tmp_path / "good").write_text(MANUAL)
    assert load(tmp_path / "good").port == 5355


@given(st.binary(max_size=200) | st.text(max_size=100).map(lambda t: (MINIMAL + t).encode("utf-8", "replace")))
def test_any_bytes_are_a_configuration_or_one_error(raw: bytes) -> None:
    try:
        parse(raw, "f")
    except ConfigError as exc:
        line = str(exc)
        assert "\n" not in line
