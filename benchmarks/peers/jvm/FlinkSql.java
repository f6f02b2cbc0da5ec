package peers;

import java.util.List;
import java.util.Queue;
import java.util.UUID;
import java.util.concurrent.ConcurrentLinkedQueue;
import java.util.stream.Collectors;
import java.util.stream.IntStream;
import org.apache.flink.streaming.api.environment.StreamExecutionEnvironment;
import org.apache.flink.streaming.api.functions.sink.legacy.SinkFunction;
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
              'connector' = 'kafka', 'topic' = '%s', 'properties.bootstrap.servers' = '%s', 'properties.group.id' = '%s',
              'properties.interceptor.classes' = '%s',
              'scan.startup.mode' = 'earliest-offset', 'scan.bounded.mode' = 'latest-offset', 'format' = 'json'
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
            SELECT 1000 * UNIX_TIMESTAMP(CAST(window_start AS STRING)), path, COUNT(*), COUNT(DISTINCT visitor_id), COUNT(campaign)
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

    private static final Queue<Object[]> ROWS = new ConcurrentLinkedQueue<>();

    private FlinkSql() {}

    public static void main(String[] arguments) {
        Contestant.run(arguments, FlinkSql::run);
    }

    private static void run(Contestant contestant) throws Exception {
        StreamExecutionEnvironment streams =
                StreamExecutionEnvironment.getExecutionEnvironment(FlinkEnvironment.settings());
        StreamTableEnvironment tables = StreamTableEnvironment.create(streams);
        tables.getConfig().set("table.local-time-zone", "UTC");
        tables.executeSql(CLICKS.formatted(
                contestant.topic, contestant.bootstrap, "bench-flink-" + UUID.randomUUID(), FirstRecord.class.getName()));
        tables.executeSql(HUMANS);
        Table result = tables.sqlQuery(
                switch (contestant.workload) {
                    case "w1" -> MINUTE_COUNTS;
                    case "w3" -> SESSIONS;
                    case "w5" -> VISITOR_HOURS;
                    default -> throw contestant.unknownWorkload();
                });
        tables.toDataStream(result).addSink(new Keep()).name("keep");
        streams.execute();
        contestant.finish(ROWS);
    }

    /** Keeps the first four columns of each row that a closed window gives. */
    private static final class Keep implements SinkFunction<Row> {
        @Override
        public void invoke(Row row, Context context) {
            ROWS.add(IntStream.range(0, 4).mapToObj(row::getField).toArray());
            Contestant.end();
        }
    }
}
