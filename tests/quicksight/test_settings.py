"""What the settings ``quicksight.*`` take, and what they say to the rest."""

from __future__ import annotations

import pytest

from streamproc.errors import ConfigError
from streamproc.settings import read_settings

USER = "arn:aws:quicksight:eu-central-1:012345678901:user/default/someone"
GROUP = "arn:aws:quicksight:eu-central-1:012345678901:group/default/analysts"


def read(**values):
    return read_settings(
        environ={f"STREAMPROC_QUICKSIGHT_{k.upper()}": v for k, v in values.items()}
    ).quicksight


def test_lists_are_written_with_commas_or_as_toml_lists(tmp_path):
    assert read(owners=f"{USER}, {GROUP}").owners == (USER, GROUP)
    file = tmp_path / "streamproc.toml"
    file.write_text(f'[quicksight]\nviewers = ["{USER}", "{GROUP}"]\n')
    assert read_settings(file, environ={}).quicksight.viewers == (USER, GROUP)


def test_tags_are_pairs():
    assert read(tags="team=web, environment=production").tags == (
        ("environment", "production"),
        ("team", "web"),
    )


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("account", "1234", "is not an account"),
        ("owners", "someone", "is not such an ARN"),
        ("owners", "arn:aws:iam::012345678901:user/someone", "is not such an ARN"),
        ("summaries_secret", "hunter2", "is not such an ARN"),
        ("vpc_connection", "vpc-123", "is not such an ARN"),
        ("summaries", "mysql://db:3306/clicks", "has none of the schemes"),
        ("summaries", "redshift://db:5439/clicks", "has none of the schemes"),
        ("summaries", "postgresql://db/clicks", "does not name server and database"),
        ("summaries", "postgresql://user:hunter2@db:5432/clicks", "does not name server and database"),
        ("warehouse", "redshift-cluster://Clicks/dev", "does not name server and database"),
        ("refresh", "5m", "is not known"),
        ("full_refresh_at", "25:00", "is not a time of day"),
        ("prefix", "two words", "cannot begin an id"),
        ("tags", "team", "is not a tag"),
        ("tags", "streamproc:stream=mine", "reserved"),
    ],
)
def test_a_value_that_cannot_be_is_told(name, value, told):
    with pytest.raises(ConfigError, match=told) as error:
        read(**{name: value})
    assert "hunter2" not in str(error.value)


def test_every_kind_of_database_is_taken():
    for url in ("aurora-postgresql://a.b:5432/c", "postgresql://a:5432/c", "rds://instance/c"):
        assert read(summaries=url).summaries.reveal() == url
    for url in ("none", "redshift://a.b:5439/c", "redshift-cluster://a/c", "rds://a/c"):
        assert read(warehouse=url).warehouse.reveal() == url
