"""``streamproc quicksight`` against a strict stand-in of the service, with moto behind it for what moto has."""

from __future__ import annotations

import pytest

from tests.quicksight.conftest import HOPS, OWNER, PAGE, SECRET, VIEWER
from tests.quicksight.pages import SHIPPED
from tests.support.quicksight_stub import ACCOUNT

pytestmark = pytest.mark.aws

FIRST = [
    ("create", "summaries-aurora-postgresql"),
    ("create", "table-views"),
    ("create", "table-visits"),
    ("create", ""),
]

#: After a failure between a data set and its schedules.
HALF = [("update", "table-views"), *FIRST[2:]]


def test_a_page_becomes_a_data_source_data_sets_and_a_dashboard(desk):
    assert desk.done() == FIRST
    assert set(desk.stub.data_sets) == {desk.id("table-views"), desk.id("table-visits")}
    assert set(desk.stub.dashboards) == {desk.id("")}


def test_the_shipped_clickstream_is_published_as_it_is(desk):
    desk.settings |= {"WAREHOUSE": "redshift-cluster://events/clicks", "WAREHOUSE_SECRET": SECRET}
    desk.call("publish", "clickstream", "--yes", topics=SHIPPED[0].parent)
    sets = {id_: each["ImportMode"] for id_, each in desk.stub.data_sets.items()}
    base = f"{desk.prefix}-clickstream"
    assert {id_.removeprefix(f"{base}-"): mode for id_, mode in sets.items()} == {
        "table-page_views": "SPICE",
        "table-site_activity": "DIRECT_QUERY",
        "table-traffic_sources": "SPICE",
        "table-audience": "SPICE",
        "table-sessions": "SPICE",
        "table-checkout_funnel": "SPICE",
        "funnel-checkout_funnel-checkout": "SPICE",
        "events": "DIRECT_QUERY",
    }
    answer = desk.call("diff", "clickstream", topics=SHIPPED[0].parent)
    assert "QuickSight is as the pages say." in answer.stdout


def test_publishing_again_changes_nothing(desk):
    desk.done()
    before = len(desk.stub.asked())
    assert desk.done() == []
    assert "Nothing to do." in desk.call("publish").stdout
    assert "QuickSight is as the pages say." in desk.call("diff").stdout
    assert desk.stub.asked()[before:] == []


def test_the_database_is_reached_by_secret_vpc_connection_and_tls(desk):
    desk.settings["VPC_CONNECTION"] = f"arn:aws:quicksight:us-east-1:{ACCOUNT}:vpcConnection/private"
    desk.done()
    ((_, asked),) = desk.stub.asked("CreateDataSource")
    assert asked["Type"] == "AURORA_POSTGRESQL"
    assert asked["DataSourceParameters"] == {
        "AuroraPostgreSqlParameters": {"Host": "tables.internal", "Port": 5432, "Database": "clicks"}
    }
    assert asked["Credentials"] == {"SecretArn": SECRET}
    assert asked["VpcConnectionProperties"]["VpcConnectionArn"].endswith("vpcConnection/private")
    assert asked["SslProperties"] == {"DisableSsl": False}


@pytest.mark.parametrize(
    ("url", "type_", "parameters"),
    [
        (
            "rds://tables/clicks",
            "POSTGRESQL",
            {"RdsParameters": {"InstanceId": "tables", "Database": "clicks"}},
        ),
        (
            "postgresql://db:5433/clicks",
            "POSTGRESQL",
            {"PostgreSqlParameters": {"Host": "db", "Port": 5433, "Database": "clicks"}},
        ),
    ],
)
def test_the_tables_may_be_in_other_kinds_of_postgresql(desk, url, type_, parameters):
    desk.settings["SUMMARIES"] = url
    desk.done()
    ((_, asked),) = desk.stub.asked("CreateDataSource")
    assert (asked["Type"], asked["DataSourceParameters"]) == (type_, parameters)


@pytest.mark.parametrize(
    ("url", "parameters"),
    [
        ("redshift://clicks.example:5439/dev", {"Host": "clicks.example", "Port": 5439, "Database": "dev"}),
        ("redshift-cluster://clicks/dev", {"ClusterId": "clicks", "Database": "dev"}),
    ],
)
def test_events_in_redshift_get_a_data_set_of_their_own_that_is_queried(desk, url, parameters):
    desk.settings |= {"WAREHOUSE": url, "WAREHOUSE_SECRET": SECRET}
    assert ("create", "events") in desk.done()
    sources = {asked["Type"]: asked for _, asked in desk.stub.asked("CreateDataSource")}
    assert sources["REDSHIFT"]["DataSourceParameters"] == {"RedshiftParameters": parameters}
    events = desk.stub.data_sets[desk.id("events")]
    assert events["ImportMode"] == "DIRECT_QUERY"
    assert '"warehouse"."shop"' in events["PhysicalTableMap"]["query"]["CustomSql"]["SqlQuery"]


def test_a_new_table_brings_its_data_set_and_a_new_version_of_the_dashboard(desk):
    desk.done()
    desk.write(PAGE + HOPS)
    assert [(each["action"], desk.short(each["id"])) for each in desk.differences()] == [
        ("create", "table-now"),
        ("update", ""),
    ]
    assert desk.done() == [("create", "table-now"), ("update", "")]
    assert desk.stub.published[desk.id("")] == 2
    definition = desk.stub.dashboards[desk.id("")][1]["asked"]["Definition"]
    assert [sheet["SheetId"] for sheet in definition["Sheets"]] == [
        "overview",
        "content",
        "sessions",
        "realtime",
    ]
    assert desk.done() == []


def test_what_differs_is_named_and_what_the_service_filled_in_is_not(desk):
    desk.done()
    desk.write(PAGE.replace('comment = "Page views"', 'comment = "Views of pages"') + HOPS)
    by_id = {desk.short(each["id"]): each["details"] for each in desk.differences()}
    assert by_id["table-views"] == ["LogicalTableMap.table.DataTransforms[views].TagColumnOperation.Tags"]
    assert "Definition.Sheets[realtime] is new" in by_id[""]
    assert not [detail for detail in by_id[""] if "Actions" in detail]


def test_a_new_measure_changes_its_data_set_and_keeps_the_others(desk):
    desk.done()
    desk.write(
        PAGE.replace(
            "[tables.visits]", 'measures.value = { kind = "sum", column = "value" }\n[tables.visits]'
        )
    )
    assert desk.done() == [("update", "table-views"), ("update", "")]
    columns = [each["Name"] for each in desk.stub.data_sets[desk.id("table-views")]["OutputColumns"]]
    assert columns == ["path", "window_start", "window_end", "views", "visitors", "value"]


def test_a_table_that_leaves_the_page_keeps_its_data_set_until_it_is_pruned(desk):
    desk.write(PAGE + HOPS)
    desk.done()
    desk.write(PAGE)
    assert desk.done() == [("update", "")]
    (left,) = desk.differences()
    assert (left["action"], desk.short(left["id"])) == ("delete", "table-now")
    assert desk.done("--prune") == [("delete", "table-now")]
    assert "QuickSight is as the pages say." in desk.call("diff").stdout


def test_imported_tables_have_an_incremental_and_a_daily_full_refresh(desk):
    desk.write(PAGE + HOPS)
    desk.done()
    views, visits = desk.id("table-views"), desk.id("table-visits")
    assert desk.stub.schedules[views] == {
        "streamproc-full": {
            "ScheduleId": "streamproc-full",
            "RefreshType": "FULL_REFRESH",
            "ScheduleFrequency": {"Interval": "DAILY", "TimeOfTheDay": "03:00", "Timezone": "UTC"},
        },
        "streamproc-incremental": {
            "ScheduleId": "streamproc-incremental",
            "RefreshType": "INCREMENTAL_REFRESH",
            "ScheduleFrequency": {"Interval": "HOURLY"},
        },
    }
    windows = {
        id_: each["RefreshConfiguration"]["IncrementalRefresh"]["LookbackWindow"]
        for id_, each in desk.stub.properties.items()
    }
    # A session changes for up to a day and a half, then comes a day for a service that stood still.
    assert windows == {
        views: {"ColumnName": "window_start", "Size": 2, "SizeUnit": "DAY"},
        visits: {"ColumnName": "session_start", "Size": 3, "SizeUnit": "DAY"},
    }
    assert desk.stub.data_sets[desk.id("table-now")]["ImportMode"] == "DIRECT_QUERY"
    assert not desk.stub.schedules.get(desk.id("table-now"))


def test_schedules_change_with_the_settings_and_those_of_others_stay(desk):
    desk.done()
    views = desk.stub.schedules[desk.id("table-views")]
    theirs = {
        "ScheduleId": "by-hand",
        "RefreshType": "FULL_REFRESH",
        "ScheduleFrequency": {"Interval": "HOURLY"},
    }
    views["by-hand"] = theirs
    desk.settings |= {"REFRESH": "15m", "FULL_REFRESH_AT": "04:30"}
    assert desk.done() == [("update", "table-views"), ("update", "table-visits")]
    assert views["streamproc-incremental"]["ScheduleFrequency"] == {"Interval": "MINUTE15"}
    assert views["streamproc-full"]["ScheduleFrequency"]["TimeOfTheDay"] == "04:30"
    desk.settings["REFRESH"] = "1d"
    desk.done()
    assert set(views) == {"streamproc-full", "by-hand"}
    assert views["by-hand"] == theirs
    assert desk.stub.properties == {}


def test_owners_may_change_everything_and_viewers_see_the_dashboard(desk):
    desk.done()
    permissions = desk.stub.permissions
    dashboard = permissions[f"dashboard/{desk.id('')}"]
    assert "quicksight:DeleteDashboard" in dashboard[OWNER]
    assert dashboard[VIEWER] == {
        "quicksight:DescribeDashboard",
        "quicksight:ListDashboardVersions",
        "quicksight:QueryDashboard",
    }
    assert set(permissions[f"dataset/{desk.id('table-views')}"]) == {OWNER}
    assert set(permissions[f"datasource/{desk.id('summaries-aurora-postgresql')}"]) == {OWNER}


def test_who_leaves_the_settings_loses_the_permission_and_nothing_else_is_touched(desk):
    desk.done()
    before = len(desk.stub.asked())
    del desk.settings["VIEWERS"]
    (difference,) = desk.differences()
    assert difference["action"] == "share"
    assert difference["details"] == [f"permissions of {VIEWER}"]
    assert desk.done() == [("share", "")]
    assert set(desk.stub.permissions[f"dashboard/{desk.id('')}"]) == {OWNER}
    changed = {name for name, _ in desk.stub.asked()[before:]}
    assert changed == {"UpdateDashboardPermissions", "TagResource"}


def test_owners_and_viewers_change_places_by_whole_lists_of_actions(desk):
    desk.done()
    desk.settings |= {"OWNERS": VIEWER, "VIEWERS": OWNER}
    dashboard = desk.stub.permissions[f"dashboard/{desk.id('')}"]
    owner, viewer = set(dashboard[OWNER]), set(dashboard[VIEWER])
    assert {action for action, _ in desk.done()} == {"share"}
    assert dashboard == {OWNER: viewer, VIEWER: owner}
    ((_, asked),) = desk.stub.asked("UpdateDashboardPermissions")
    assert asked["GrantPermissions"] == [{"Principal": VIEWER, "Actions": sorted(owner)}]
    assert desk.done() == []


def test_without_principals_in_the_settings_permissions_are_left_to_people(desk):
    del desk.settings["OWNERS"], desk.settings["VIEWERS"]
    desk.done()
    by_hand = {OWNER: {"quicksight:DescribeDashboard"}}
    desk.stub.permissions[f"dashboard/{desk.id('')}"] = by_hand
    assert desk.done() == []
    assert desk.stub.permissions[f"dashboard/{desk.id('')}"] == by_hand


def test_tags_of_the_settings_are_on_everything(desk):
    desk.settings["TAGS"] = "team=web,environment=production"
    desk.done()
    desk.settings["TAGS"] = "team=data,environment=production"
    assert [action for action, _ in desk.done()] == ["share"] * 4
    for tags in desk.stub.tags.values():
        assert tags["team"] == "data" and tags["environment"] == "production"
    assert desk.done() == []


def test_a_data_set_of_somebody_else_with_the_same_id_is_not_touched(desk):
    desk.done()
    arn = next(arn for arn in desk.stub.tags if arn.endswith("table-views"))
    desk.stub.tags[arn] = {"team": "others"}
    desk.write(PAGE.replace("Page views", "Views"))
    before = len(desk.stub.asked())
    answer = desk.call("publish", "--yes", expect=2)
    assert "was not made by this command" in answer.output
    assert desk.stub.asked()[before:] == []


def test_delete_takes_what_publish_made_and_nothing_else(desk):
    desk.done()
    other = desk.id("table-visits")
    arn = next(arn for arn in desk.stub.tags if arn.endswith("table-visits"))
    desk.stub.tags[arn].pop("streamproc:stream")  # taken over by somebody
    before = len(desk.stub.asked())
    desk.write("")  # the page need not be there
    answer = desk.call("delete", "shop", "--yes")
    assert [line.partition(":")[0] for line in answer.stdout.splitlines()] == [
        f"dashboard {desk.id('')}",
        f"data set {desk.id('table-views')}",
        f"data source {desk.id('summaries-aurora-postgresql')}",
    ]
    assert {name for name, _ in desk.stub.asked()[before:]} == {
        "DeleteDashboard",
        "DeleteDataSet",
        "DeleteDataSource",
    }
    assert set(desk.stub.data_sets) == {other}
    assert "Nothing to do." in desk.call("delete", "shop", "--yes").stdout


def test_delete_of_one_stream_spares_another_whose_name_begins_with_its_name(desk):
    desk.done()
    desk.write(PAGE.replace('"shop"', '"shop2"'))
    desk.call("publish", "--yes")
    desk.call("delete", "shop", "--yes")
    assert set(desk.stub.dashboards) == {f"{desk.prefix}-shop2"}


def test_throttling_and_slowness_are_waited_out(desk):
    desk.stub.throttled = 3
    desk.stub.slow = 2
    assert desk.done() == FIRST
    assert desk.stub.throttled == 0


def test_what_an_interrupted_run_began_is_waited_for(desk, monkeypatch):
    desk.stub.slow = 3
    with monkeypatch.context() as impatient:
        impatient.setattr("streamproc.quicksight.service._DEADLINE", 0.0)
        answer = desk.call("publish", "--yes", expect=1)
        assert "is still CREATION_IN_PROGRESS" in answer.output
    assert desk.done() == [("update", "summaries-aurora-postgresql"), *FIRST[1:]]
    assert desk.done() == []


def test_a_dashboard_that_the_service_cannot_make_is_told_with_its_reasons_and_made_anew_later(desk):
    reasons = [
        {"Type": "COLUMN_TYPE_MISMATCH", "Message": "views is not a number"},
        {"Type": "INTERNAL_FAILURE", "Message": "and one more thing"},
    ]
    desk.stub.failing[desk.id("")] = reasons
    answer = desk.call("publish", "--yes", expect=1)
    assert "CREATION_FAILED: COLUMN_TYPE_MISMATCH views is not a number" in answer.output
    assert "INTERNAL_FAILURE and one more thing" in answer.output
    (difference,) = desk.differences()
    assert difference["action"] == "replace"
    desk.stub.failing.clear()
    assert desk.done() == [("replace", "")]
    assert desk.done() == []


def test_a_version_that_fails_leaves_the_one_that_is_published(desk):
    desk.done()
    desk.stub.failing[desk.id("")] = [{"Type": "INTERNAL_FAILURE", "Message": "not today"}]
    desk.write(PAGE + HOPS)
    assert "not today" in desk.call("publish", "--yes", expect=1).output
    assert desk.stub.published[desk.id("")] == 1
    desk.stub.failing.clear()
    assert desk.done() == [("update", "")]
    assert desk.stub.published[desk.id("")] == 3


def test_a_data_source_that_cannot_connect_is_told_and_made_anew_later(desk):
    source = desk.id("summaries-aurora-postgresql")
    desk.stub.failing[source] = [{"Type": "UNKNOWN_HOST", "Message": "tables.internal"}]
    assert "CREATION_FAILED: UNKNOWN_HOST tables.internal" in desk.call("publish", "--yes", expect=1).output
    assert desk.stub.data_sets == {}
    desk.stub.failing.clear()
    assert desk.done() == [("replace", "summaries-aurora-postgresql"), *FIRST[1:]]


@pytest.mark.parametrize(
    ("operation", "code", "hint", "left"),
    [
        ("CreateDataSet", "AccessDeniedException", "docs/quicksight.md", FIRST[1:]),
        ("CreateRefreshSchedule", "AccessDeniedException", "docs/quicksight.md", HALF),
        ("PutDataSetRefreshProperties", "ConflictException", "run it again", HALF),
        ("CreateDashboard", "UnsupportedUserEditionException", "Enterprise", FIRST[3:]),
    ],
)
def test_a_refusal_halfway_is_told_and_the_next_run_goes_on_there(desk, operation, code, hint, left):
    desk.stub.refusals[operation].append(code)
    answer = desk.call("publish", "--yes", expect=1)
    assert f"data source {desk.id('summaries-aurora-postgresql')}: created" in answer.output
    assert code in answer.output and hint in answer.output
    assert desk.done() == left
    assert desk.done() == []


def test_a_first_import_that_fails_is_told_to_who_waits_for_it(desk):
    desk.stub.failing[desk.id("table-views")] = [{"Type": "PASSWORD_AUTHENTICATION_FAILURE", "Message": "no"}]
    answer = desk.call("publish", "--yes", "--wait", expect=1)
    assert "FAILED: PASSWORD_AUTHENTICATION_FAILURE no" in answer.output


def test_who_waits_is_told_the_imported_rows(desk):
    answer = desk.call("publish", "--yes", "--wait")
    assert f"data set {desk.id('table-visits')}: 42 rows imported" in answer.output


def test_a_setting_that_is_missing_is_named_before_anything_is_asked(desk):
    del desk.settings["SUMMARIES_SECRET"]
    answer = desk.call("publish", "--yes", expect=2)
    assert "quicksight.summaries_secret: is needed" in answer.output
    assert desk.stub.requests == []


def test_secrets_are_named_by_their_arns_only_and_nothing_of_them_is_shown(desk):
    answer = desk.call("publish", "--yes")
    assert "secret" not in answer.output.lower()
