package peers;

import static org.apache.spark.sql.functions.*;

import java.util.HashMap;
import java.util.List;
import java.util.Map;
import org.apache.spark.api.java.function.VoidFunction2;
import org.apache.spark.scheduler.SparkListener;
import org.apache.spark.scheduler.SparkListenerTaskStart;
import org.apache.spark.sql.Column;
import org.apache.spark.sql.Dataset;
import org.apache.spark.sql.Row;
import org.apache.spark.sql.SparkSession;
import org.apache.spark.sql.streaming.DataStreamWriter;
import org.apache.spark.sql.streaming.StreamingQueryListener;
import org.apache.spark.sql.streaming.Trigger;

/** Spark Structured Streaming: windowed aggregations in micro-batches until the topic is read. */
public final class SparkStreaming {
    private static final String SCHEMA = "event_time BIGINT, visitor_id STRING, page_url STRING, user_agent STRING";
    private static final Column START = unix_millis(col("window.start"));

    private SparkStreaming() {}

    public static void main(String[] arguments) {
        Contestant.run(arguments, SparkStreaming::run);
    }

    private static void run(Contestant contestant) throws Exception {
        SparkSession spark = SparkSession.builder()
                .master("local[2]")
                .appName("bench")
                .config("spark.ui.enabled", "false")
                .config("spark.driver.bindAddress", "127.0.0.1")
                .config("spark.driver.host", "127.0.0.1")
                // As many as there are cores: the default of 200 is for clusters, and each one is a state store here.
                .config("spark.sql.shuffle.partitions", "2")
                .config("spark.sql.session.timeZone", "UTC")
                .config("spark.sql.streaming.checkpointLocation", "checkpoints")
                // An empty batch at the end, which would only drop old state.
                .config("spark.sql.streaming.noDataMicroBatches.enabled", "false")
                .getOrCreate();
        spark.sparkContext().addSparkListener(new FirstTask());
        if (contestant.workload.equals("w2")) {
            SparkPage.run(spark, contestant);
            return;
        }
        Dataset<Row> humans = humans(spark, contestant);
        DataStreamWriter<Row> result = result(humans, contestant).writeStream();
        if (contestant.workload.equals("w4")) {
            keepFresh(spark, result, contestant);
        } else {
            collect(result, contestant);
        }
    }

    private static void collect(DataStreamWriter<Row> result, Contestant contestant) throws Exception {
        Map<List<Object>, Object[]> rows = new HashMap<>();
        // Update: a batch hands over the rows that it changed. Complete: all of them, and no state is ever dropped.
        String mode = contestant.workload.equals("w3") ? "complete" : "update";
        VoidFunction2<Dataset<Row>, Long> keep = (batch, number) -> {
            List<Row> changed = batch.collectAsList();
            if (mode.equals("complete")) {
                rows.clear();
            }
            for (Row row : changed) {
                Object[] columns = {row.get(0), row.get(1), row.get(2), row.get(3)};
                rows.put(List.of(columns[0], columns[1]), columns);
            }
            Contestant.end();
        };
        result.outputMode(mode).trigger(Trigger.AvailableNow()).foreachBatch(keep).start().awaitTermination();
        contestant.finish(rows.values());
    }

    /** w4: a batch a second, until all events were in one. */
    private static void keepFresh(SparkSession spark, DataStreamWriter<Row> result, Contestant contestant)
            throws Exception {
        String url = PostgresUrl.toJdbc(contestant.option("postgres", ""));
        Upsert upsert = new Upsert(url, "page_counts", List.of("window_start", "path", "views", "visitors"), 2);
        VoidFunction2<Dataset<Row>, Long> write = (batch, number) -> batch.foreachPartition(upsert);
        spark.streams().addListener(new AllRead());
        result.outputMode("update").trigger(Trigger.ProcessingTime("1 second")).foreachBatch(write).start();
        Contestant.all().get();
        Contestant.end();
        Contestant.tell();
    }

    /** The topic's events, from its beginning, as the columns of {@code schema} (DDL) and their time {@code ts}. */
    static Dataset<Row> clicks(SparkSession spark, Contestant contestant, String schema) {
        return spark.readStream()
                .format("kafka")
                .option("kafka.bootstrap.servers", contestant.bootstrap)
                .option("subscribe", contestant.topic)
                .option("startingOffsets", "earliest")
                .option("maxOffsetsPerTrigger", contestant.option("batch", "500000"))
                .load()
                .select(from_json(col("value").cast("string"), schema, Map.of()).as("click"))
                .select("click.*")
                .withColumn("ts", timestamp_millis(col("event_time")));
    }

    private static Dataset<Row> humans(SparkSession spark, Contestant contestant) {
        return clicks(spark, contestant, SCHEMA)
                .where(not(col("user_agent").contains("bot")))
                // Batches take from each partition in proportion: a minute is far more than they can be apart.
                .withWatermark("ts", "1 minute");
    }

    private static Dataset<Row> result(Dataset<Row> humans, Contestant contestant) {
        return switch (contestant.workload) {
            // A streaming aggregation has no exact count(distinct): sets of visitors, and their size.
            case "w1", "w4" -> humans.withColumn("path", regexp_extract(col("page_url"), "^https?://[^/]+([^?#]*)", 1))
                    .withColumn("campaign", regexp_extract(col("page_url"), "[?&]utm_campaign=([^&#]*)", 1))
                    .groupBy(window(col("ts"), "1 minute"), col("path"))
                    .agg(
                            count(lit(1)).as("views"),
                            size(collect_set("visitor_id")).cast("long").as("visitors"),
                            // The campaigns are counted because the planner leaves out a column that nobody asks for.
                            count(nullif(col("campaign"), lit(""))).as("campaigns"))
                    .select(START, col("path"), col("views"), col("visitors"), col("campaigns"));
            case "w3" -> humans.groupBy(session_window(col("ts"), "30 minutes"), col("visitor_id"))
                    .agg(min("event_time").as("first"), max("event_time").as("last"), count(lit(1)).as("events"))
                    .select("visitor_id", "first", "last", "events");
            case "w5" -> humans.groupBy(window(col("ts"), "1 hour"), col("visitor_id"))
                    .agg(count(lit(1)).as("events"), max("event_time").as("last"))
                    .select(START, col("visitor_id"), col("events"), col("last"));
            default -> throw contestant.unknownWorkload();
        };
    }

    /** Starts the clock when the first task does: Spark's Kafka source takes no interceptor. */
    private static final class FirstTask extends SparkListener {
        @Override
        public void onTaskStart(SparkListenerTaskStart start) {
            long millisAgo = System.currentTimeMillis() - start.taskInfo().launchTime();
            Contestant.begin(System.nanoTime() - millisAgo * 1_000_000);
        }
    }

    /** Completes {@link Contestant#all} when batches that are over have read all events, or the query has failed. */
    private static final class AllRead extends StreamingQueryListener {
        private long events;

        @Override
        public void onQueryStarted(QueryStartedEvent started) {}

        @Override
        public void onQueryProgress(QueryProgressEvent batch) {
            events += batch.progress().numInputRows();
            if (events >= Contestant.expected()) {
                Contestant.all().complete(null);
            }
        }

        @Override
        public void onQueryTerminated(QueryTerminatedEvent terminated) {
            Contestant.all().completeExceptionally(new IllegalStateException(
                    terminated.exception().isDefined() ? terminated.exception().get() : "the query ended"));
        }
    }
}
