package peers;

import java.util.UUID;
import java.util.stream.IntStream;
import org.apache.flink.core.execution.JobClient;
import org.apache.flink.streaming.api.environment.StreamExecutionEnvironment;
import org.apache.flink.table.api.Table;
import org.apache.flink.table.api.bridge.java.StreamTableEnvironment;
import org.apache.flink.types.Row;

/** Flink SQL: window table-valued functions over a Kafka table that ends where the topic ends. */
public final class FlinkSql {
    private static final String CLICKS =
            """
            CREATE TABLE clicks (
              event_time BIGINT, visitor_id STRING, page_url STRING, user_agent STRING,
              ts AS TO_TIMESTAMP_LTZ(event_time, 3),
              WATERMARK FOR ts AS ts
            ) WITH (
              'connector' = 'kafka', 'topic' = '%s',
              'properties.bootstrap.servers' = '%s', 'properties.group.id' = '%s',
              'properties.interceptor.classes' = '%s',
              'scan.startup.mode' = 'earliest-offset', 'scan.bounded.mode' = '%s', 'format' = 'json'
            )""";
    private static final String HUMANS =
            """
            CREATE TEMPORARY VIEW humans AS
            SELECT ts, event_time, visitor_id,
                   REGEXP_EXTRACT(page_url, '^https?://[^/]+([^?#]*)', 1) AS path,
                   REGEXP_EXTRACT(page_url, '[?&]utm_campaign=([^&#]*)', 1) AS campaign
              FROM clicks WHERE POSITION('bot' IN user_agent) = 0""";
    /** The campaigns are counted because the planner leaves out a column that nobody asks for. */
    private static final String MINUTE_COUNTS =
            """
            SELECT 1000 * UNIX_TIMESTAMP(CAST(window_start AS STRING)), path,
                   COUNT(*), COUNT(DISTINCT visitor_id), COUNT(campaign)
              FROM TUMBLE(TABLE humans, DESCRIPTOR(ts), INTERVAL '1' MINUTE)
             GROUP BY window_start, window_end, path""";
    private static final String SESSIONS =
            """
            SELECT visitor_id, MIN(event_time), MAX(event_time), COUNT(*)
              FROM SESSION(TABLE humans PARTITION BY visitor_id, DESCRIPTOR(ts), INTERVAL '30' MINUTE)
             GROUP BY window_start, window_end, visitor_id""";
    private static final String VISITOR_HOURS =
            """
            SELECT 1000 * UNIX_TIMESTAMP(CAST(window_start AS STRING)), visitor_id, COUNT(*), MAX(event_time)
              FROM TUMBLE(TABLE humans, DESCRIPTOR(ts), INTERVAL '1' HOUR)
             GROUP BY window_start, window_end, visitor_id""";

    /** A row for each change of a count, and not only when its window closes: an aggregation without windows. */
    private static final String FRESH_COUNTS =
            """
            INSERT INTO page_counts
            SELECT event_time - MOD(event_time, 60000), path, COUNT(*), COUNT(DISTINCT visitor_id)
              FROM humans GROUP BY event_time - MOD(event_time, 60000), path""";
    private static final String PAGE_COUNTS =
            """
            CREATE TABLE page_counts (
              window_start BIGINT, path STRING, `views` BIGINT, visitors BIGINT,
              PRIMARY KEY (window_start, path) NOT ENFORCED
            ) WITH (
              'connector' = 'jdbc', 'url' = '%s', 'table-name' = 'page_counts',
              'sink.buffer-flush.interval' = '500ms', 'sink.buffer-flush.max-rows' = '5000'
            )""";

    private FlinkSql() {}

    public static void main(String[] arguments) {
        Contestant.run(arguments, FlinkSql::run);
    }

    private static void run(Contestant contestant) throws Exception {
        StreamExecutionEnvironment streams =
                StreamExecutionEnvironment.getExecutionEnvironment(FlinkEnvironment.settings());
        StreamTableEnvironment tables = StreamTableEnvironment.create(streams);
        tables.getConfig().set("table.local-time-zone", "UTC");
        if (contestant.workload.equals("w2")) {
            FlinkPage.run(contestant, streams, tables);
            return;
        }
        boolean fresh = contestant.workload.equals("w4");
        tables.executeSql(CLICKS.formatted(
                contestant.topic,
                contestant.bootstrap,
                "bench-flink-" + UUID.randomUUID(),
                (fresh ? Committed.class : FirstRecord.class).getName(),
                fresh ? "unbounded" : "latest-offset"));
        tables.executeSql(HUMANS);
        if (fresh) {
            keepFresh(tables, PostgresUrl.toJdbc(contestant.option("postgres", "")));
            return;
        }
        Table result = tables.sqlQuery(
                switch (contestant.workload) {
                    case "w1" -> MINUTE_COUNTS;
                    case "w3" -> SESSIONS;
                    case "w5" -> VISITOR_HOURS;
                    default -> throw contestant.unknownWorkload();
                });
        tables.toDataStream(result).map(FlinkSql::answered).sinkTo(new Keep());
        streams.execute();
        contestant.finish(Keep.ROWS);
    }

    /** w4: until a checkpoint has put the positions behind all events, and so their rows, where they belong. */
    private static void keepFresh(StreamTableEnvironment tables, String url) throws Exception {
        tables.getConfig().set("table.exec.mini-batch.enabled", "true");
        tables.getConfig().set("table.exec.mini-batch.allow-latency", "500ms");
        tables.getConfig().set("table.exec.mini-batch.size", "5000");
        tables.getConfig().set("table.exec.state.ttl", "1h");
        tables.executeSql(PAGE_COUNTS.formatted(url));
        JobClient job = tables.executeSql(FRESH_COUNTS).getJobClient().orElseThrow();
        job.getJobExecutionResult().whenComplete((done, failure) -> {
            if (failure != null) {
                Contestant.all().completeExceptionally(failure);
            }
        });
        Contestant.all().get();
        Contestant.end();
        Contestant.tell();
    }

    private static Object[] answered(Row row) {
        return IntStream.range(0, 4).mapToObj(row::getField).toArray();
    }
}
