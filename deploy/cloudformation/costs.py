"""What a deployment costs in a month, for three sizes: the table of docs/aws.md, which a test compares with this.

::

    python deploy/cloudformation/costs.py

Prices are Amazon's list prices of us-east-1, on demand, without taxes, discounts and free tiers. They change: look each
up on the page that is named beside it.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from math import ceil

HOURS = 730
SECONDS = HOURS * 3600

#: Bytes of an event of the benchmark's input (benchmarks/README.md).
EVENT_BYTES = 416
#: CPU seconds per million events of the shipped page: worker, and PostgreSQL (README.md, "Speed").
WORKER_CPU, DATABASE_CPU = 7.1, 2.8
#: Bytes in the lake for each event that came in, three quarters of which are kept: `streamproc demo` with 200,000.
LAKE_BYTES = 45
#: How busy workers are meant to be, and how much higher a peak is than the mean.
BUSY, PEAK = 0.6, 2.0
FLUSH_SECONDS = 5
#: CloudWatch's metrics that are paid for: what the agent and the filters of logs make of one stream, and what Container
#: Insights tells of the cluster (12), of each service (15) and of each kind of task that is always or often there (10).
METRICS, INSIGHTS = 20, 12 + 15 + 3 * 10
#: Of Container Insights, for the pages: one more service, one more kind of task.
PAGES_INSIGHTS = 15 + 10
#: Metrics that alarms look at, which is what an alarm costs by; two of them are the scaling's own.
ALARMS = 22


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars for one unit, and the page it is on."""

    dollars: float
    unit: str
    page: str


PRICES = {
    "Fargate, processor": Price(0.04048, "vCPU-hour", "https://aws.amazon.com/fargate/pricing/"),
    "Fargate, memory": Price(0.004445, "GB-hour", "https://aws.amazon.com/fargate/pricing/"),
    "Kinesis, shard": Price(0.015, "shard-hour", "https://aws.amazon.com/kinesis/data-streams/pricing/"),
    "Kinesis, seven days": Price(0.020, "shard-hour", "https://aws.amazon.com/kinesis/data-streams/pricing/"),
    "Kinesis, records": Price(
        0.014, "million units of 25 kB", "https://aws.amazon.com/kinesis/data-streams/pricing/"
    ),
    "MSK, kafka.m7g.large": Price(0.204, "broker-hour", "https://aws.amazon.com/msk/pricing/"),
    "MSK, storage": Price(0.10, "GB-month", "https://aws.amazon.com/msk/pricing/"),
    "RDS, db.t4g.medium": Price(0.130, "hour, two zones", "https://aws.amazon.com/rds/postgresql/pricing/"),
    "RDS, db.m7g.large": Price(0.337, "hour, two zones", "https://aws.amazon.com/rds/postgresql/pricing/"),
    "RDS, db.m7g.xlarge": Price(0.674, "hour, two zones", "https://aws.amazon.com/rds/postgresql/pricing/"),
    "RDS, storage": Price(0.23, "GB-month, two zones", "https://aws.amazon.com/rds/postgresql/pricing/"),
    "S3, storage": Price(0.023, "GB-month", "https://aws.amazon.com/s3/pricing/"),
    "S3, writes": Price(5.0, "million", "https://aws.amazon.com/s3/pricing/"),
    "Redshift Serverless": Price(0.375, "RPU-hour", "https://aws.amazon.com/redshift/pricing/"),
    "Redshift, storage": Price(0.024, "GB-month", "https://aws.amazon.com/redshift/pricing/"),
    "CloudWatch, logs": Price(0.50, "GB", "https://aws.amazon.com/cloudwatch/pricing/"),
    "CloudWatch, metric": Price(0.30, "month", "https://aws.amazon.com/cloudwatch/pricing/"),
    "CloudWatch, alarm": Price(0.10, "month", "https://aws.amazon.com/cloudwatch/pricing/"),
    "Load balancer": Price(0.0225, "hour", "https://aws.amazon.com/elasticloadbalancing/pricing/"),
    "Load balancer, capacity": Price(
        0.008, "unit-hour", "https://aws.amazon.com/elasticloadbalancing/pricing/"
    ),
    "NAT gateway": Price(0.045, "hour", "https://aws.amazon.com/vpc/pricing/"),
    "NAT gateway, data": Price(0.045, "GB", "https://aws.amazon.com/vpc/pricing/"),
    "KMS, key": Price(1.0, "month", "https://aws.amazon.com/kms/pricing/"),
    "Secret": Price(0.40, "month", "https://aws.amazon.com/secrets-manager/pricing/"),
}


@dataclass(frozen=True, slots=True)
class Size:
    """A deployment for ``rate`` events a second.

    ``packed``: producers pack events into Kinesis records of 25 kB. ``loads``: of the warehouse, an hour.
    """

    rate: int
    cpu: float
    memory: float
    database: str
    storage: int
    loads: int
    packed: bool

    @property
    def workers(self) -> int:
        """Two at least, so that one can go."""
        return max(2, ceil(self.rate * PEAK * WORKER_CPU / 1e6 / BUSY / self.cpu))

    @property
    def shards(self) -> int:
        """By bytes, and by records where each event is one."""
        by_bytes = self.rate * PEAK * EVENT_BYTES / 1e6
        by_records = 0.0 if self.packed else self.rate * PEAK / 1000
        return max(1, ceil(max(by_bytes, by_records)))

    @property
    def lake_gb(self) -> float:
        """What a month adds to the lake."""
        return self.rate * SECONDS * LAKE_BYTES / 1e9

    @property
    def kafka_gb(self) -> float:
        """Seven days, three times, with a fifth to spare; at least what a broker is made with by default."""
        return max(3 * 500, self.rate * 7 * 86_400 * EVENT_BYTES * 3 * 1.2 / 1e9)


SIZES = [
    Size(10, 1, 4, "db.t4g.medium", 50, 1, packed=False),
    Size(1_000, 1, 4, "db.m7g.large", 100, 4, packed=False),
    Size(50_000, 2, 4, "db.m7g.xlarge", 500, 12, packed=True),
]


def price(name: str) -> float:
    """Dollars for one unit."""
    return PRICES[name].dollars


def costs(size: Size) -> dict[str, float]:
    """Dollars in a month by part; the broker is Kinesis or MSK, so one of these two is paid."""
    units = size.rate * SECONDS / 1e6 * (EVENT_BYTES / 25_000 if size.packed else 1)
    objects = SECONDS / FLUSH_SECONDS * min(4 * size.workers, size.rate * FLUSH_SECONDS)
    # A load keeps Redshift busy for a minute, the least that is charged; at 8 RPU.
    redshift_hours = HOURS * size.loads / 60
    return {
        "Kinesis": HOURS * size.shards * (price("Kinesis, shard") + price("Kinesis, seven days"))
        + units * price("Kinesis, records"),
        "or MSK": HOURS * 3 * price("MSK, kafka.m7g.large") + size.kafka_gb * price("MSK, storage"),
        "ECS Fargate": HOURS
        * size.workers
        * (size.cpu * price("Fargate, processor") + size.memory * price("Fargate, memory")),
        "RDS PostgreSQL": HOURS * price(f"RDS, {size.database}") + size.storage * price("RDS, storage"),
        "S3, the twelfth month": 12 * size.lake_gb * price("S3, storage")
        + objects / 1e6 * price("S3, writes"),
        "Redshift Serverless": redshift_hours * 8 * price("Redshift Serverless")
        + 12 * size.lake_gb * price("Redshift, storage"),
        "CloudWatch": size.workers * 1.0 * price("CloudWatch, logs")
        + (METRICS + INSIGHTS) * price("CloudWatch, metric")
        + ALARMS * price("CloudWatch, alarm"),
        # A task of half a processor and 1 GB; some analysts' pages, a unit of capacity at most.
        "Dashboard's pages": HOURS
        * (
            0.5 * price("Fargate, processor")
            + price("Fargate, memory")
            + price("Load balancer")
            + price("Load balancer, capacity")
        )
        + PAGES_INSIGHTS * price("CloudWatch, metric")
        + price("Secret"),
        "Network, key, secrets": 2 * HOURS * price("NAT gateway")
        + (20 + size.lake_gb) * price("NAT gateway, data")
        + price("KMS, key")
        + 2 * price("Secret"),
    }


def rows(cells: list[list[str]]) -> list[str]:
    """A Markdown table, numbers to the right."""
    head, *rest = cells
    rule = ["---"] + ["---:"] * (len(head) - 1)
    return [f"| {' | '.join(line)} |" for line in (head, rule, *rest)]


def table() -> str:
    """The sizes, and what each part of them costs."""
    found = [costs(size) for size in SIZES]
    sizes = [
        ["events a second", *(f"{size.rate:,}" for size in SIZES)],
        [
            "processors' work, worker and database",
            *(f"{size.rate * (WORKER_CPU + DATABASE_CPU) / 1e6:.4f} CPU" for size in SIZES),
        ],
        ["workers", *(f"{size.workers} of {size.cpu:g} vCPU, {size.memory:g} GB" for size in SIZES)],
        [
            "shards" + ", if Kinesis",
            *(f"{size.shards}{' (packed)' if size.packed else ''}" for size in SIZES),
        ],
        ["database, two zones", *(f"{size.database}, {size.storage} GB" for size in SIZES)],
        ["added to the lake in a month", *(f"{size.lake_gb:,.1f} GB" for size in SIZES)],
        ["loads of the warehouse an hour", *(str(size.loads) for size in SIZES)],
    ]
    money = [[part, *(f"${each[part]:,.0f}" for each in found)] for part in found[0]]
    for broker, other in (("Kinesis", "or MSK"), ("or MSK", "Kinesis")):
        name = broker.removeprefix("or ")
        sums = [sum(value for part, value in each.items() if part != other) for each in found]
        money.append([f"**all, with {name}**", *(f"**${total:,.0f}**" for total in sums)])
    assumed = [[name, f"${each.dollars:g}", each.unit, each.page] for name, each in PRICES.items()]
    head = "| price of | us-east-1 | for one | source |\n|---|---:|---|---|\n"
    return (
        "\n".join(rows(sizes))
        + "\n\n"
        + "\n".join(rows([["dollars a month", *("" for _ in SIZES)], *money]))
        + "\n\n"
        + head
        + "\n".join(f"| {' | '.join(line)} |" for line in assumed)
        + "\n"
    )


if __name__ == "__main__":
    sys.stdout.write(table())
