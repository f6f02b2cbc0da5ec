package peers;

import static org.apache.spark.sql.functions.*;

import java.util.ArrayList;
import java.util.List;
import org.apache.spark.api.java.function.VoidFunction2;
import org.apache.spark.sql.Column;
import org.apache.spark.sql.Dataset;
import org.apache.spark.sql.Row;
import org.apache.spark.sql.SparkSession;
import org.apache.spark.sql.streaming.StreamingQuery;
import org.apache.spark.sql.streaming.Trigger;

/** w2 in Spark: a query for the Parquet files and one for each table, all of which read the topic. */
final class SparkPage {
    private static final String SCHEMA =
            """
            event_id STRING, event_type STRING, event_time BIGINT, visitor_id STRING, session_id STRING,
            page_url STRING, referrer STRING, user_agent STRING, ip STRING, value DOUBLE, properties STRING""";
    private static final Column IS_PAGE = col("event_type").equalTo("page_view");
    private static final Column START = unix_millis(col("window.start"));
    /** A streaming aggregation has no exact count(distinct): sets of visitors, and their size. */
    private static final Column VISITORS = size(collect_set("visitor_id")).cast("long");

    private final SparkSession spark;
    private final Contestant contestant;
    private final String url;
    private final List<StreamingQuery> queries = new ArrayList<>();

    private SparkPage(SparkSession spark, Contestant contestant) {
        this.spark = spark;
        this.contestant = contestant;
        url = PostgresUrl.toJdbc(contestant.option("postgres", "")) + "&reWriteBatchedInserts=true";
    }

    static void run(SparkSession spark, Contestant contestant) throws Exception {
        SparkPage page = new SparkPage(spark, contestant);
        page.start();
        for (StreamingQuery query : page.queries) {
            query.awaitTermination();
        }
        Contestant.end();
        Contestant.tell();
    }

    private void start() throws Exception {
        queries.add(accepted()
                .drop("ts")
                .writeStream()
                .format("parquet")
                .option("compression", "zstd")
                .option("path", contestant.option("lake", ""))
                .option("checkpointLocation", "checkpoints/files")
                .trigger(Trigger.AvailableNow())
                .start());
        Dataset<Row> pages = accepted().where(IS_PAGE);
        upsert(
                "page_views",
                3,
                pages.groupBy(window(col("ts"), "1 minute"), col("host"), col("path"))
                        .agg(count(lit(1)).as("views"), VISITORS.as("visitors"))
                        .select(START.as("window_start"), col("host"), col("path"), col("views"), col("visitors")));
        upsert(
                "traffic_sources",
                5,
                pages.groupBy(
                                window(col("ts"), "1 hour"),
                                col("host"),
                                col("utm_source"),
                                col("utm_medium"),
                                col("utm_campaign"))
                        .agg(count(lit(1)).as("views"), VISITORS.as("visitors"))
                        .select(
                                START.as("window_start"),
                                col("host"),
                                col("utm_source"),
                                col("utm_medium"),
                                col("utm_campaign"),
                                col("views"),
                                col("visitors")));
        upsert(
                "site_activity",
                2,
                accepted()
                        .groupBy(window(col("ts"), "5 minutes", "1 minute"), col("host"))
                        .agg(
                                count(lit(1)).as("events"),
                                count(when(IS_PAGE, 1)).as("page_views"),
                                VISITORS.as("visitors"))
                        .select(
                                START.as("window_start"),
                                col("host"),
                                col("events"),
                                col("page_views"),
                                col("visitors")));
        sessions();
    }

    /** Session windows have no update mode: each batch hands over all sessions, which take the place of the last one's. */
    private void sessions() throws Exception {
        Column page = when(IS_PAGE, struct("event_time", "path"));
        Dataset<Row> sessions = accepted()
                .groupBy(session_window(col("ts"), "30 minutes"), col("visitor_id"))
                .agg(
                        min("event_time").as("session_start"),
                        max("event_time").as("session_end"),
                        count(lit(1)).as("events"),
                        count(when(IS_PAGE, 1)).as("pages"),
                        min(page).getField("path").as("landing_page"),
                        max(page).getField("path").as("exit_page"),
                        coalesce(sum(when(col("event_type").equalTo("purchase"), col("value"))), lit(0.0))
                                .as("revenue"))
                .drop("session_window");
        VoidFunction2<Dataset<Row>, Long> write = (batch, number) -> batch.write()
                .format("jdbc")
                .option("url", url)
                .option("dbtable", "sessions")
                .option("truncate", "true")
                .mode("overwrite")
                .save();
        queries.add(sessions.writeStream()
                .outputMode("complete")
                .option("checkpointLocation", "checkpoints/sessions")
                .trigger(Trigger.AvailableNow())
                .foreachBatch(write)
                .start());
    }

    private void upsert(String table, int keys, Dataset<Row> rows) throws Exception {
        Upsert upsert = new Upsert(url, table, List.of(rows.columns()), keys);
        VoidFunction2<Dataset<Row>, Long> write = (batch, number) -> batch.foreachPartition(upsert);
        queries.add(rows.writeStream()
                .outputMode("update")
                .option("checkpointLocation", "checkpoints/" + table)
                .trigger(Trigger.AvailableNow())
                .foreachBatch(write)
                .start());
    }

    private Dataset<Row> accepted() {
        Column url = col("page_url");
        return SparkStreaming.clicks(spark, contestant, SCHEMA)
                .where(not(col("event_type").equalTo("heartbeat")))
                .where(not(col("user_agent").rlike("(?i)bot|facebookexternalhit|python-requests")))
                .withColumn("host", lower(regexp_extract(url, "^https?://([^/?#]+)", 1)))
                .withColumn("path", regexp_extract(url, "^https?://[^/]+([^?#]*)", 1))
                .withColumn("utm_source", regexp_extract(url, "[?&]utm_source=([^&#]*)", 1))
                .withColumn("utm_medium", regexp_extract(url, "[?&]utm_medium=([^&#]*)", 1))
                .withColumn("utm_campaign", regexp_extract(url, "[?&]utm_campaign=([^&#]*)", 1))
                // The page's lateness. Batches take from each partition in proportion: that is less than they are apart.
                .withWatermark("ts", "10 minutes");
    }
}
