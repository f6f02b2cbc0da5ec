"""Settings: where they are looked for, what is refused, and that secrets stay secret."""

from __future__ import annotations

import copy
import pickle
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamproc.errors import ConfigError, Mistake
from streamproc.quantities import Invalid, parse_duration, parse_size, show_duration
from streamproc.redaction import Secret, Url, redact
from streamproc.settings import Settings, declared, read_settings, unknown_variables, variable

PASSWORD = "hunter2-and-more"


def write(folder: Path, text: str) -> Path:
    path = folder / "streamproc.toml"
    path.write_text(text)
    return path


def mistakes_of(config: Path | None = None, **environ: str) -> tuple[Mistake, ...]:
    with pytest.raises(ConfigError) as caught:
        read_settings(config, environ={f"STREAMPROC_{key}": value for key, value in environ.items()})
    assert PASSWORD not in str(caught.value)
    return caught.value.mistakes


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings file of the checkout is found by chance."""
    monkeypatch.chdir(tmp_path)


def test_without_any_setting_everything_is_embedded_or_local(tmp_path: Path) -> None:
    settings = read_settings(environ={})
    assert settings.broker.embedded
    assert settings.ledger.embedded
    assert settings.warehouse.embedded
    assert settings.lake.reveal() == (tmp_path / "streamproc-data" / "lake").as_uri()
    assert settings.topics is None
    assert settings.drain_deadline == 30.0
    assert settings.worker


def test_a_command_line_option_beats_the_environment_which_beats_the_file(tmp_path: Path) -> None:
    config = write(tmp_path, 'group = "file"\nstart = "latest"\nbatch_records = 7\n')
    environ = {"STREAMPROC_GROUP": "environment", "STREAMPROC_START": "earliest"}
    settings = read_settings(config, environ, {"group": "option", "start": None})
    assert (settings.group, settings.start, settings.batch_records) == ("option", "earliest", 7)


def test_an_empty_variable_is_one_that_is_not_set() -> None:
    assert read_settings(environ={"STREAMPROC_GROUP": ""}).group == "streamproc"


def test_the_file_is_found_by_option_by_variable_and_in_the_working_directory(tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    other.write_text('group = "other"')
    third = tmp_path / "third.toml"
    third.write_text('group = "third"')
    write(tmp_path, 'group = "here"')
    assert read_settings(environ={}).group == "here"
    assert read_settings(environ={"STREAMPROC_CONFIG": str(other)}).group == "other"
    assert read_settings(third, environ={"STREAMPROC_CONFIG": str(other)}).group == "third"


def test_a_file_that_was_named_must_be_there() -> None:
    assert "no such file" in mistakes_of(Path("nowhere.toml"))[0].problem
    assert "no such file" in mistakes_of(CONFIG="nowhere.toml")[0].problem


def test_paths_in_the_file_start_at_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "etc"
    folder.mkdir()
    (folder / "ca.pem").write_text("")
    config = write(folder, 'topics = "pages"\n[kafka]\nca_file = "ca.pem"\n')
    settings = read_settings(config, environ={"STREAMPROC_DATA_DIR": "data"})
    assert settings.topics == folder / "pages"
    assert settings.kafka.ca_file == folder / "ca.pem"
    assert settings.data_dir == Path("data")


def test_units_are_seconds_and_bytes() -> None:
    settings = read_settings(
        environ={"STREAMPROC_FLUSH_INTERVAL": "1500ms", "STREAMPROC_MAX_EPOCH_BYTES": "2MiB"}
    )
    assert settings.flush_interval == 1.5
    assert settings.max_epoch_bytes == 2 * 1024 * 1024


def test_a_ledger_elsewhere_does_not_become_a_warehouse_by_itself() -> None:
    settings = read_settings(environ={"STREAMPROC_LEDGER": "postgresql://db/streamproc"})
    assert settings.warehouse.reveal() == "none"


@pytest.mark.parametrize("key", ["ledger", "warehouse", "kafka.password"])
def test_secrets_can_be_read_from_files_as_docker_and_kubernetes_mount_them(key: str, tmp_path: Path) -> None:
    secret = "postgresql://u:pw@db/x" if key != "kafka.password" else PASSWORD
    (tmp_path / "secret").write_text(f"{secret}\n")
    settings = read_settings(environ={f"{variable(key)}_FILE": str(tmp_path / "secret")})
    found = settings.kafka.password if key == "kafka.password" else getattr(settings, key)
    assert found.reveal() == secret


def test_a_secret_file_that_cannot_be_read_is_a_mistake_at_its_variable() -> None:
    (mistake,) = mistakes_of(LEDGER_FILE="/nowhere")
    assert mistake.where == "environment: STREAMPROC_LEDGER_FILE"


def test_secrets_never_show() -> None:
    settings = read_settings(
        environ={
            "STREAMPROC_LEDGER": f"postgresql://app:{PASSWORD}@db:5432/streamproc",
            "STREAMPROC_KAFKA_PASSWORD": PASSWORD,
        }
    )
    shown = [repr(settings), str(settings), f"{settings.ledger}", f"{settings.kafka.password!r}"]
    assert all(PASSWORD not in text for text in shown)
    assert settings.ledger.reveal() == f"postgresql://app:{PASSWORD}@db:5432/streamproc"
    assert str(settings.ledger) == "postgresql://app:***@db:5432/streamproc"
    assert settings.kafka.password is not None
    assert settings.kafka.password.reveal() == PASSWORD
    assert copy.copy(settings.kafka.password) == pickle.loads(pickle.dumps(settings.kafka.password))


WRONG = [
    ({"BROKER": "localhost:9092"}, "STREAMPROC_BROKER", "schemes", "kafka://host:9092"),
    ({"BROKER": "kafka://localhost"}, "STREAMPROC_BROKER", "host:port", "kafka://host:9092"),
    ({"BROKER": "kafka://a:9092,b:65536"}, "STREAMPROC_BROKER", "no port 65536", "65,535"),
    ({"BROKER": f"kafka://u:{PASSWORD}@h:9092"}, "STREAMPROC_BROKER", "user or password", "kafka.username"),
    ({"BROKER": "kinesis://x"}, "STREAMPROC_BROKER", "names no AWS region", "kinesis://eu-central-1"),
    ({"BROKER": "kinesis://host:80"}, "STREAMPROC_BROKER", "names no AWS region", "kinesis://eu-central-1"),
    ({"KINESIS_START_TIMESTAMP": "soon"}, "KINESIS_START_TIMESTAMP", "is not a time", "2026-07-01T13:00:00Z"),
    ({"KINESIS_START_TIMESTAMP": "9999-01-01"}, "KINESIS_START_TIMESTAMP", "is in the future", "2026"),
    ({"KINESIS_POLL_INTERVAL": "100ms"}, "KINESIS_POLL_INTERVAL", "is out of range", "200ms"),
    ({"LEDGER": f"mysql://u:{PASSWORD}@h/db"}, "STREAMPROC_LEDGER", "schemes", "postgresql://"),
    ({"LEDGER": f"{PASSWORD}"}, "STREAMPROC_LEDGER", "schemes", "postgresql://"),
    ({"LEDGER": f"postgresql://u:{PASSWORD}@/"}, "STREAMPROC_LEDGER", "names no server", "postgresql://"),
    ({"LEDGER": "none"}, "STREAMPROC_LEDGER", "schemes", "embedded:"),
    ({"LEDGER": "embedded:x"}, "STREAMPROC_LEDGER", "takes nothing", '"embedded:"'),
    ({"LAKE": "/var/lake"}, "STREAMPROC_LAKE", "schemes", "file:///"),
    ({"LAKE": "file://lake"}, "STREAMPROC_LAKE", "not an absolute folder", "three slashes"),
    ({"LAKE": "s3://B"}, "STREAMPROC_LAKE", "no bucket", "s3://bucket/prefix"),
    ({"WAREHOUSE": "redshift-data://x"}, "STREAMPROC_WAREHOUSE", "names no workgroup", "redshift-data://"),
    ({"WAREHOUSE": f"redshift://u:{PASSWORD}@/"}, "STREAMPROC_WAREHOUSE", "no host", "redshift://"),
    (
        {"WAREHOUSE": "redshift-data://workgroup/abc/db", "LAKE": "s3://bucket/it's"},
        "STREAMPROC_LAKE",
        "COPY of Redshift",
        "letters",
    ),
    ({"WAREHOUSE": "redshift-data://workgroup/abc/db"}, "STREAMPROC_WAREHOUSE", "loads from S3", "s3://"),
    (
        {"WAREHOUSE": f"redshift://u:{PASSWORD}@h/db", "LAKE": "file:///x"},
        "STREAMPROC_WAREHOUSE",
        "loads from S3",
        "s3://",
    ),
    ({"BROKER": "s3://logs", "LAKE": "s3://logs/out"}, "STREAMPROC_LAKE", "lies in s3://logs", "another"),
    (
        {"BROKER": "s3://shop/logs", "LAKE": "s3://shop/logs-lake"},
        "STREAMPROC_LAKE",
        "lies in s3://shop/logs",
        "slash",
    ),
    (
        {"BROKER": "s3://shop/lake/", "LAKE": "s3://shop"},
        "STREAMPROC_LAKE",
        "lies in s3://shop/lake",
        "another",
    ),
    (
        {"BROKER": "file:///logs", "LAKE": "file:///logs/a/b"},
        "STREAMPROC_LAKE",
        "lies in file:///logs",
        "another",
    ),
    ({"START": "newest"}, "STREAMPROC_START", "not known", "earliest, latest"),
    ({"FLUSH_INTERVAL": "5"}, "STREAMPROC_FLUSH_INTERVAL", "no unit", '"30s"'),
    ({"FLUSH_INTERVAL": "2d"}, "STREAMPROC_FLUSH_INTERVAL", "out of range", "100ms to 1h"),
    ({"BATCH_RECORDS": "many"}, "STREAMPROC_BATCH_RECORDS", "not a whole number", "1 to 1000000"),
    ({"BATCH_RECORDS": "0"}, "STREAMPROC_BATCH_RECORDS", "out of range", "1 to 1,000,000"),
    ({"MAX_EPOCH_BYTES": "1 TB"}, "STREAMPROC_MAX_EPOCH_BYTES", "not a size", "64MiB"),
    ({"HEALTH": "8080"}, "STREAMPROC_HEALTH", "not host:port", "0.0.0.0:8080"),
    ({"HEALTH": "::1:8080"}, "STREAMPROC_HEALTH", "not host:port", "brackets"),
    ({"LOG_LEVEL": "chatty"}, "STREAMPROC_LOG_LEVEL", "not known", "debug, info"),
    ({"GROUP": "my group"}, "STREAMPROC_GROUP", "not a name", "letters"),
    ({"S3_ENDPOINT_URL": "minio:9000"}, "STREAMPROC_S3_ENDPOINT_URL", "not a web address", "https://"),
    ({"KAFKA_CA_FILE": "/nowhere.pem"}, "STREAMPROC_KAFKA_CA_FILE", "cannot be read", "may read"),
    ({"KAFKA_SASL_MECHANISM": "GSSAPI"}, "STREAMPROC_KAFKA_SASL_MECHANISM", "not known", "SCRAM-SHA-512"),
    ({"KAFKA_SASL_MECHANISM": "PLAIN"}, "STREAMPROC_KAFKA_SASL_MECHANISM", "no effect", "SASL_SSL"),
    (
        {"KAFKA_SECURITY_PROTOCOL": "SASL_SSL"},
        "STREAMPROC_KAFKA_SASL_MECHANISM",
        "is needed",
        "kafka.sasl_mechanism",
    ),
    (
        {"KAFKA_SECURITY_PROTOCOL": "SASL_SSL", "KAFKA_SASL_MECHANISM": "AWS_MSK_IAM"},
        "STREAMPROC_KAFKA_AWS_REGION",
        "is needed",
        "kafka.aws_region",
    ),
    (
        {
            "KAFKA_SECURITY_PROTOCOL": "SASL_PLAINTEXT",
            "KAFKA_SASL_MECHANISM": "AWS_MSK_IAM",
            "KAFKA_AWS_REGION": "x",
        },
        "STREAMPROC_KAFKA_SECURITY_PROTOCOL",
        "TLS only",
        "SASL_SSL",
    ),
]


@pytest.mark.parametrize(
    ("environ", "where", "problem", "fix"), WRONG, ids=[str(case[0])[:60] for case in WRONG]
)
def test_a_wrong_setting_is_named_with_its_place_and_its_fix(
    environ: dict[str, str], where: str, problem: str, fix: str
) -> None:
    (mistake,) = mistakes_of(**environ)
    assert where in mistake.where
    assert problem in mistake.problem
    assert fix in mistake.fix


@pytest.mark.parametrize(
    ("broker", "lake"),
    [
        ("s3://shop/logs/", "s3://shop/logs-lake"),
        ("s3://shop/logs/", "s3://shop"),
        ("s3://shop/logs", "s3://shop/lake"),
        ("s3://logs", "s3://logs-lake/x"),
        ("file:///logs", "file:///logs-lake"),
        ("kinesis://eu-central-1", "s3://shop"),
    ],
)
def test_a_lake_beside_the_logs_is_fine(broker: str, lake: str) -> None:
    settings = read_settings(environ={"STREAMPROC_BROKER": broker, "STREAMPROC_LAKE": lake})
    assert settings.broker.reveal() == broker


def test_every_mistake_is_reported_at_once_whatever_the_place(tmp_path: Path) -> None:
    config = write(
        tmp_path, 'grop = "x"\nstart = 3\n[kafka]\nsecurity_protocol = "SASL_SSL"\nsasl_mechanism = "PLAIN"\n'
    )
    found = mistakes_of(config, BATCH_RECORDS="x")
    assert [m.where for m in found] == [
        "streamproc.toml: grop",
        "streamproc.toml: start",
        "environment: STREAMPROC_BATCH_RECORDS",
        "streamproc.toml: kafka.username (environment: STREAMPROC_KAFKA_USERNAME)",
        "streamproc.toml: kafka.password (environment: STREAMPROC_KAFKA_PASSWORD)",
    ]
    assert found[0].fix == "Did you mean group?"


def test_a_certificate_needs_its_key_and_the_other_way_round(tmp_path: Path) -> None:
    (tmp_path / "it.pem").write_text("")
    pem = str(tmp_path / "it.pem")
    assert "kafka.key_file" in mistakes_of(KAFKA_CERT_FILE=pem)[0].fix
    assert "kafka.cert_file" in mistakes_of(KAFKA_KEY_FILE=pem)[0].fix


def test_sasl_with_everything_it_needs_is_read() -> None:
    settings = read_settings(
        environ={
            "STREAMPROC_BROKER": "kafka://a:9092, b:9092",
            "STREAMPROC_KAFKA_SECURITY_PROTOCOL": "sasl_ssl",
            "STREAMPROC_KAFKA_SASL_MECHANISM": "scram-sha-512",
            "STREAMPROC_KAFKA_USERNAME": "app",
            "STREAMPROC_KAFKA_PASSWORD": PASSWORD,
        }
    )
    assert settings.broker.rest == "a:9092,b:9092"
    assert settings.kafka.security_protocol == "SASL_SSL"
    assert settings.kafka.sasl_mechanism == "SCRAM-SHA-512"


def test_a_broken_file_is_a_mistake_that_does_not_quote_it(tmp_path: Path) -> None:
    config = write(tmp_path, f'[kafka]\npassword = "{PASSWORD}\n')
    assert "not TOML" in mistakes_of(config)[0].problem


def test_variables_of_kubernetes_services_are_no_mistake_and_slips_are_noticed() -> None:
    environ = {"STREAMPROC_PORT": "tcp://10.0.0.1:80", "STREAMPROC_SERVICE_HOST": "10.0.0.1"}
    read_settings(environ=environ)
    assert unknown_variables(environ) == {}
    assert unknown_variables({"STREAMPROC_LEGDER": "x", "STREAMPROC_KAFKA_USER_NAME": "x"}) == {
        "STREAMPROC_LEGDER": "STREAMPROC_LEDGER",
        "STREAMPROC_KAFKA_USER_NAME": "STREAMPROC_KAFKA_USERNAME",
    }


def test_defaults_are_what_a_user_could_have_written() -> None:
    written = {variable(key): item.default for key, item in declared() if item.default is not None}
    assert read_settings(environ=written) == read_settings(environ={})


@given(
    st.dictionaries(st.sampled_from([key for key, _ in declared()]), st.text(st.characters(codec="utf-8")))
)
def test_any_text_in_any_variable_gives_settings_or_a_configuration_mistake(values: dict[str, str]) -> None:
    try:
        settings = read_settings(environ={variable(key): value for key, value in values.items()})
    except ConfigError as error:
        assert all(mistake.where and mistake.problem and mistake.fix for mistake in error.mistakes)
    else:
        assert isinstance(settings, Settings)


@given(st.integers(1, 36_525), st.sampled_from(["ms", "s", "m", "h", "d"]))
def test_a_duration_that_is_shown_reads_back_the_same(amount: int, unit: str) -> None:
    microseconds = parse_duration(f"{amount}{unit}")
    assert parse_duration(show_duration(microseconds)) == microseconds


@pytest.mark.parametrize(
    ("text", "microseconds"),
    [
        ("500ms", 500_000),
        ("30s", 30_000_000),
        ("10m", 600_000_000),
        ("1h", 3_600_000_000),
        ("7 d", 604_800_000_000),
    ],
)
def test_durations(text: str, microseconds: int) -> None:
    assert parse_duration(text) == microseconds


@pytest.mark.parametrize(
    "text",
    ["", "1", "m", "1.5h", "-1s", "1w", "1h30m", "\u0661s", 5, 1.5, True, None, ["1s"], "9" * 16 + "s"],
)
def test_what_is_no_duration_is_refused(text: object) -> None:
    with pytest.raises(Invalid):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "size"), [(5, 5), ("5", 5), ("1kB", 1000), ("1KiB", 1024), ("2 MiB", 2_097_152), ("1GB", 10**9)]
)
def test_sizes(text: object, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "1.5MiB", "MiB", "1 TiB", True, None, -1.0])
def test_what_is_no_size_is_refused(text: object) -> None:
    with pytest.raises(Invalid):
        parse_size(text)


@pytest.mark.parametrize(
    "text",
    [
        f"postgresql://app:{PASSWORD}@db/x",
        f"postgresql://app:{PASSWORD}@a:1,b:2/x?sslmode=require",
        f"cannot connect to postgresql://app:{PASSWORD}@db/x: refused",
        f"postgresql://app:p@ss:{PASSWORD}@db/x",
        f"host=db password={PASSWORD} user=app",
        f"host=db password='{PASSWORD}'",
        f"postgresql://db/x?user=app&password={PASSWORD}&sslmode=require",
        f"{{'sasl_plain_password': '{PASSWORD}'}}",
        f"aws_secret_access_key={PASSWORD}",
    ],
)
def test_passwords_are_cut_out_of_texts(text: str) -> None:
    assert PASSWORD not in redact(text)
    assert "***" in redact(text)


@given(st.from_regex(re.compile(r"[a-z0-9/:@ .-]{0,40}", re.ASCII), fullmatch=True))
def test_texts_without_a_secret_stay_as_they_are(text: str) -> None:
    assert redact(text) == text or ("://" in text and "@" in text)


@pytest.mark.parametrize(
    "text",
    ["a" * 200_000 + ":", "a" * 200_000 + "@", "@" + "://a:" * 40_000, "@" + "x://a" * 40_000]
    + [f"{piece * 30_000}@:" for piece in ("password", "password ", "password=", "password='", "a://b:c")],
    ids=lambda text: f"{text[:10]}",
)
def test_a_long_text_of_a_stranger_does_not_hold_up_the_log(text: str) -> None:
    """It takes milliseconds; time that grows with the square would be minutes, and end at the suite's limit."""
    assert len(redact(text)) > 0


def test_a_secret_is_no_text() -> None:
    assert not isinstance(Secret("x"), str)
    assert not Secret("")
    assert f"{Secret('x')}{Url('postgresql://a:b@c')}" == "***postgresql://a:***@c"
