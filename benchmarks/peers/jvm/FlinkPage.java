package peers;

import java.util.List;
import java.util.UUID;
import org.apache.flink.connector.file.sink.FileSink;
import org.apache.flink.core.fs.Path;
import org.apache.flink.streaming.api.datastream.DataStream;
import org.apache.flink.streaming.api.environment.StreamExecutionEnvironment;
import org.apache.flink.streaming.api.functions.sink.filesystem.OutputFileConfig;
import org.apache.flink.streaming.api.functions.sink.filesystem.bucketassigners.BasePathBucketAssigner;
import org.apache.flink.table.api.Schema;
import org.apache.flink.table.api.Table;
import org.apache.flink.table.api.bridge.java.StreamStatementSet;
import org.apache.flink.table.api.bridge.java.StreamTableEnvironment;
import org.apache.flink.table.data.RowData;

/** w2 in SQL, as one job: accepted events go to Parquet files, and by statements to four tables of PostgreSQL. */
final class FlinkPage {
    private static final String CLICKS =
            """
            CREATE TABLE clicks (
              event_id STRING, event_type STRING, event_time BIGINT, visitor_id STRING, session_id STRING,
              page_url STRING, referrer STRING, user_agent STRING, ip STRING, `value` DOUBLE, properties STRING,
              arrived AS PROCTIME(),
              ts AS TO_TIMESTAMP_LTZ(event_time, 3),
              WATERMARK FOR ts AS ts - INTERVAL '30' SECOND
            ) WITH (
              'connector' = 'kafka', 'topic' = '%s',
              'properties.bootstrap.servers' = '%s', 'properties.group.id' = '%s',
              'properties.interceptor.classes' = '%s',
              'scan.startup.mode' = 'earliest-offset', 'scan.bounded.mode' = 'latest-offset', 'format' = 'json'
            )""";
    private static final String HUMANS =
            """
            CREATE TEMPORARY VIEW humans AS
            SELECT * FROM clicks
             WHERE event_type <> 'heartbeat'
               AND NOT REGEXP(user_agent, '(?i)bot|facebookexternalhit|python-requests')""";
    /** The first of each event_id that arrives: Flink's deduplication, which keeps the watermarks as they are. */
    private static final String ACCEPTED =
            """
            SELECT event_id, event_type, event_time, visitor_id, session_id, page_url, referrer, user_agent, ip,
                   `value`, properties,
                   LOWER(PARSE_URL(page_url, 'HOST')) AS host, PARSE_URL(page_url, 'PATH') AS path,
                   PARSE_URL(page_url, 'QUERY', 'utm_source') AS utm_source,
                   PARSE_URL(page_url, 'QUERY', 'utm_medium') AS utm_medium,
                   PARSE_URL(page_url, 'QUERY', 'utm_campaign') AS utm_campaign,
                   ts
              FROM (SELECT *, ROW_NUMBER() OVER (PARTITION BY event_id ORDER BY arrived) AS number FROM humans)
             WHERE number = 1""";
    private static final String FILE =
            """
            message event {
              required binary event_id (STRING); required binary event_type (STRING); required int64 event_time;
              required binary visitor_id (STRING); optional binary session_id (STRING);
              required binary page_url (STRING); optional binary referrer (STRING);
              optional binary user_agent (STRING); optional binary ip (STRING); optional double value;
              optional binary properties (STRING); optional binary host (STRING); optional binary path (STRING);
              optional binary utm_source (STRING); optional binary utm_medium (STRING);
              optional binary utm_campaign (STRING);
            }""";

    private static final String JDBC =
            """
            'connector' = 'jdbc', 'url' = '%s',
            'sink.buffer-flush.interval' = '500ms', 'sink.buffer-flush.max-rows' = '5000'""";
    private static final List<String> TABLES = List.of(
            """
            CREATE TABLE page_views (
              window_start BIGINT, host STRING, path STRING, `views` BIGINT, visitors BIGINT,
              PRIMARY KEY (window_start, host, path) NOT ENFORCED
            ) WITH ('table-name' = 'page_views', %s)""",
            """
            CREATE TABLE traffic_sources (
              window_start BIGINT, host STRING, utm_source STRING, utm_medium STRING, utm_campaign STRING,
              `views` BIGINT, visitors BIGINT,
              PRIMARY KEY (window_start, host, utm_source, utm_medium, utm_campaign) NOT ENFORCED
            ) WITH ('table-name' = 'traffic_sources', %s)""",
            """
            CREATE TABLE site_activity (
              window_start BIGINT, host STRING, events BIGINT, page_views BIGINT, visitors BIGINT,
              PRIMARY KEY (window_start, host) NOT ENFORCED
            ) WITH ('table-name' = 'site_activity', %s)""",
            """
            CREATE TABLE sessions (
              visitor_id STRING, session_start BIGINT, session_end BIGINT, events BIGINT, pages BIGINT,
              landing_page STRING, exit_page STRING, revenue DOUBLE,
              PRIMARY KEY (visitor_id, session_start) NOT ENFORCED
            ) WITH ('table-name' = 'sessions', %s)""");

    private static final String PAGE_VIEWS =
            """
            INSERT INTO page_views
            SELECT event_time - MOD(event_time, 60000), host, path, COUNT(*), COUNT(DISTINCT visitor_id)
              FROM accepted WHERE event_type = 'page_view'
             GROUP BY event_time - MOD(event_time, 60000), host, path""";
    private static final String TRAFFIC_SOURCES =
            """
            INSERT INTO traffic_sources
            SELECT event_time - MOD(event_time, 3600000), host, COALESCE(utm_source, ''), COALESCE(utm_medium, ''),
                   COALESCE(utm_campaign, ''), COUNT(*), COUNT(DISTINCT visitor_id)
              FROM accepted WHERE event_type = 'page_view'
             GROUP BY event_time - MOD(event_time, 3600000), host, COALESCE(utm_source, ''),
                      COALESCE(utm_medium, ''), COALESCE(utm_campaign, '')""";
    private static final String SITE_ACTIVITY =
            """
            INSERT INTO site_activity
            SELECT 1000 * UNIX_TIMESTAMP(CAST(window_start AS STRING)), host, COUNT(*),
                   COUNT(*) FILTER (WHERE event_type = 'page_view'), COUNT(DISTINCT visitor_id)
              FROM HOP(TABLE accepted, DESCRIPTOR(rowtime), INTERVAL '1' MINUTE, INTERVAL '5' MINUTE)
             GROUP BY window_start, window_end, host""";
    /** Times have 13 digits: the least text of time and path is that of the first page. */
    private static final String SESSIONS =
            """
            INSERT INTO sessions
            SELECT visitor_id, MIN(event_time), MAX(event_time), COUNT(*), COUNT(page),
                   SUBSTRING(MIN(page), 14), SUBSTRING(MAX(page), 14),
                   SUM(CASE WHEN event_type = 'purchase' THEN `value` ELSE 0 END)
              FROM SESSION(TABLE with_page PARTITION BY visitor_id, DESCRIPTOR(rowtime), INTERVAL '30' MINUTE)
             GROUP BY window_start, window_end, visitor_id""";
    private static final String WITH_PAGE =
            """
            CREATE TEMPORARY VIEW with_page AS
            SELECT *, CASE WHEN event_type = 'page_view' THEN CAST(event_time AS STRING) || path END AS page
              FROM accepted""";

    private FlinkPage() {}

    private static DataStream<RowData> accepted(StreamTableEnvironment tables) {
        Table accepted = tables.sqlQuery(ACCEPTED);
        return tables.toDataStream(
                accepted, accepted.getResolvedSchema().toPhysicalRowDataType().bridgedTo(RowData.class));
    }

    static void run(Contestant contestant, StreamExecutionEnvironment streams, StreamTableEnvironment tables)
            throws Exception {
        tables.getConfig().set("table.exec.state.ttl", "1h");
        tables.executeSql(CLICKS.formatted(
                contestant.topic,
                contestant.bootstrap,
                "bench-flink-" + UUID.randomUUID(),
                FirstRecord.class.getName()));
        tables.executeSql(HUMANS);
        DataStream<RowData> accepted = accepted(tables);
        accepted.sinkTo(FileSink.forBulkFormat(
                        new Path(contestant.option("lake", "lake")),
                        new ParquetRows(FILE))
                .withBucketAssigner(new BasePathBucketAssigner<>())
                .withOutputFileConfig(
                        OutputFileConfig.builder().withPartSuffix(".parquet").build())
                .build());
        tables.createTemporaryView(
                "accepted",
                accepted,
                Schema.newBuilder()
                        .columnByMetadata("rowtime", "TIMESTAMP_LTZ(3)")
                        .watermark("rowtime", "SOURCE_WATERMARK()")
                        .build());
        tables.getConfig().set("table.exec.mini-batch.enabled", "true");
        tables.getConfig().set("table.exec.mini-batch.allow-latency", "500ms");
        tables.getConfig().set("table.exec.mini-batch.size", "5000");
        tables.executeSql(WITH_PAGE);
        String url = PostgresUrl.toJdbc(contestant.option("postgres", "")) + "&reWriteBatchedInserts=true";
        for (String table : TABLES) {
            tables.executeSql(table.formatted(JDBC.formatted(url)));
        }
        StreamStatementSet inserts = tables.createStatementSet();
        for (String insert : new String[] {PAGE_VIEWS, TRAFFIC_SOURCES, SITE_ACTIVITY, SESSIONS}) {
            inserts.addInsertSql(insert);
        }
        inserts.attachAsDataStream();
        streams.execute();
        Contestant.end();
        Contestant.tell();
    }
}
