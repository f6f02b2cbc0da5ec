"""The visuals of a dashboard, as QuickSight's API wants them.

Shapes: https://docs.aws.amazon.com/quicksight/latest/APIReference/API_Visual.html
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from streamproc.quicksight.columns import Column
from streamproc.quicksight.data_sets import DataSet
from streamproc.topology import DAY, HOUR, MINUTE, SECOND

Json = dict[str, Any]

#: Categories of a bar chart; the rest is added up as "other".
_TOP = 20

#: Names of aggregations as the titles of axes have them; a plain sum needs no word.
_WORDS = {"SUM": "", "MAX": "highest ", "MIN": "lowest ", "AVERAGE": "average "}


@dataclass(frozen=True, slots=True)
class Value:
    """What a visual shows: a column added up by ``aggregation``, or the number of (distinct) values of it."""

    data: DataSet
    column: Column
    aggregation: str
    label: str

    @classmethod
    def of(cls, data: DataSet, column: Column) -> Value:
        """The column, added up the way it may be."""
        aggregation = column.aggregation or "COUNT"
        words = column.name.replace("_", " ")
        label = f"share of {words}" if column.share else f"{_WORDS.get(aggregation, '')}{words}"
        return cls(data, column, aggregation, label.capitalize())

    @classmethod
    def counted(cls, data: DataSet, column: str, label: str, *, distinct: bool = False) -> Value:
        """How many rows have a value in ``column``, or how many values there are."""
        return cls(data, data.named[column], "DISTINCT_COUNT" if distinct else "COUNT", label)

    def field(self, visual: str) -> Json:
        """The measure of a field well."""
        shared: Json = {
            "FieldId": f"{visual}-{self.column.name}-{self.aggregation.lower()}",
            "Column": identifier(self.data, self.column.name),
        }
        if self.column.type == "STRING":
            return {"CategoricalMeasureField": {**shared, "AggregationFunction": self.aggregation}}
        measure = {**shared, "AggregationFunction": {"SimpleNumericalAggregation": self.aggregation}}
        if self.column.share:
            measure["FormatConfiguration"] = {
                "FormatConfiguration": {"PercentageDisplayFormatConfiguration": {"Suffix": "%"}}
            }
        return {"NumericalMeasureField": measure}


def identifier(data: DataSet, column: str) -> Json:
    """A column of a data set of this dashboard."""
    return {"DataSetIdentifier": data.identifier, "ColumnName": column}


def granularity(step: int) -> str:
    """The coarsest unit that keeps windows apart whose starts lie ``step`` microseconds from each other."""
    units = {"DAY": DAY, "HOUR": HOUR, "MINUTE": MINUTE, "SECOND": SECOND}
    return next((name for name, unit in units.items() if step and step % unit == 0), "MILLISECOND")


def kpi(visual: str, value: Value, *, trend: str | None = None) -> Json:
    """One number; with ``trend``, a granularity of time, the newest against the one before."""
    wells: Json = {"Values": [value.field(visual)]}
    if trend:
        wells["TrendGroups"] = [_time(visual, value.data, trend)]
    options = {"PrimaryValueDisplayType": "ACTUAL"}
    return {
        "KPIVisual": {
            **_head(visual, value.label),
            "ChartConfiguration": {"FieldWells": wells, "KPIOptions": options},
        }
    }


def line(visual: str, title: str, values: Sequence[Value], unit: str, colour: str | None = None) -> Json:
    """Values over time, in ``unit``; ``colour``: a line for each value of this column."""
    data = values[0].data
    wells: Json = {
        "Category": [_time(visual, data, unit)],
        "Values": [value.field(visual) for value in values],
    }
    sort: Json = {"CategorySort": [_by_field(f"{visual}-time", "ASC")]}
    if colour:
        wells["Colors"] = [_category(visual, data, colour)]
        sort["ColorItemsLimitConfiguration"] = {"ItemsLimit": _TOP, "OtherCategories": "INCLUDE"}
    return {
        "LineChartVisual": {
            **_head(visual, title),
            "ChartConfiguration": {
                "FieldWells": {"LineChartAggregatedFieldWells": wells},
                "SortConfiguration": sort,
                "Type": "LINE",
            },
        }
    }


def bar(visual: str, title: str, value: Value, by: str) -> Json:
    """The highest values of a category, the rest added up."""
    measure = value.field(visual)
    others = "INCLUDE" if value.aggregation in {"SUM", "COUNT"} else "EXCLUDE"
    return {
        "BarChartVisual": {
            **_head(visual, title),
            "ChartConfiguration": {
                "FieldWells": {
                    "BarChartAggregatedFieldWells": {
                        "Category": [_category(visual, value.data, by)],
                        "Values": [measure],
                    }
                },
                "SortConfiguration": {
                    "CategorySort": [_by_field(_field_id(measure), "DESC")],
                    "CategoryItemsLimit": {"ItemsLimit": _TOP, "OtherCategories": others},
                },
                "Orientation": "HORIZONTAL",
            },
        }
    }


def table(visual: str, title: str, values: Sequence[Value], by: Sequence[str]) -> Json:
    """All values of some categories, highest first."""
    data = values[0].data
    measures = [value.field(visual) for value in values]
    return {
        "TableVisual": {
            **_head(visual, title),
            "ChartConfiguration": {
                "FieldWells": {
                    "TableAggregatedFieldWells": {
                        "GroupBy": [_category(visual, data, name) for name in by],
                        "Values": measures,
                    }
                },
                "SortConfiguration": {"RowSort": [_by_field(_field_id(measures[0]), "DESC")]},
            },
        }
    }


def world(visual: str, title: str, value: Value, by: str) -> Json:
    """Countries, coloured by a value. The column has the geographic role of one."""
    return {
        "FilledMapVisual": {
            **_head(visual, title),
            "ChartConfiguration": {
                "FieldWells": {
                    "FilledMapAggregatedFieldWells": {
                        "Geospatial": [_category(visual, value.data, by)],
                        "Values": [value.field(visual)],
                    }
                }
            },
        }
    }


def funnel(visual: str, title: str, value: Value, by: str) -> Json:
    """The steps in order of their names, which begin with their number."""
    return {
        "FunnelChartVisual": {
            **_head(visual, title),
            "ChartConfiguration": {
                "FieldWells": {
                    "FunnelChartAggregatedFieldWells": {
                        "Category": [_category(visual, value.data, by)],
                        "Values": [value.field(visual)],
                    }
                },
                "SortConfiguration": {"CategorySort": [_by_field(f"{visual}-{by}", "ASC")]},
            },
        }
    }


def _head(visual: str, title: str) -> Json:
    return {
        "VisualId": visual,
        "Title": {"Visibility": "VISIBLE", "FormatText": {"PlainText": title}},
        "Subtitle": {"Visibility": "HIDDEN"},
    }


def _time(visual: str, data: DataSet, unit: str) -> Json:
    return {
        "DateDimensionField": {
            "FieldId": f"{visual}-time",
            "Column": identifier(data, data.time),
            "DateGranularity": unit,
        }
    }


def _category(visual: str, data: DataSet, name: str) -> Json:
    return {"CategoricalDimensionField": {"FieldId": f"{visual}-{name}", "Column": identifier(data, name)}}


def _by_field(field: str, direction: str) -> Json:
    return {"FieldSort": {"FieldId": field, "Direction": direction}}


def _field_id(measure: Mapping[str, Any]) -> str:
    (field,) = measure.values()
    return str(field["FieldId"])
