package peers;

import com.fasterxml.jackson.annotation.JsonIgnoreProperties;
import com.fasterxml.jackson.annotation.JsonProperty;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.Properties;
import java.util.UUID;
import java.util.concurrent.atomic.AtomicLong;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.consumer.ConsumerConfig;
import org.apache.kafka.common.serialization.Serde;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.common.utils.Bytes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.KeyValue;
import org.apache.kafka.streams.StoreQueryParameters;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.errors.StreamsUncaughtExceptionHandler.StreamThreadExceptionResponse;
import org.apache.kafka.streams.kstream.Consumed;
import org.apache.kafka.streams.kstream.Grouped;
import org.apache.kafka.streams.kstream.KStream;
import org.apache.kafka.streams.kstream.Materialized;
import org.apache.kafka.streams.kstream.Repartitioned;
import org.apache.kafka.streams.kstream.SessionWindows;
import org.apache.kafka.streams.kstream.TimeWindows;
import org.apache.kafka.streams.kstream.Windowed;
import org.apache.kafka.streams.state.KeyValueIterator;
import org.apache.kafka.streams.state.QueryableStoreTypes;
import org.apache.kafka.streams.state.SessionStore;
import org.apache.kafka.streams.state.Stores;
import org.apache.kafka.streams.state.WindowStore;

/** Kafka Streams: the DSL, exactly once, its answer from the state stores by an interactive query. */
public final class KafkaStreamsApp {
    /** Threads do not wait for each other: a repartitioned event is as late as one of them reads ahead. */
    private static final Duration GRACE = Duration.ofDays(1);

    private static final Duration MINUTE = Duration.ofMinutes(1);
    private static final String TABLE = "table";
    private static final AtomicLong COUNTED = new AtomicLong();

    /** The fields that the workloads need. */
    @JsonIgnoreProperties(ignoreUnknown = true)
    record Click(
            @JsonProperty("event_time") long eventTime,
            @JsonProperty("visitor_id") String visitor,
            @JsonProperty("page_url") String pageUrl,
            @JsonProperty("user_agent") String userAgent) {}

    /** A click as the repartition topic carries it, by path. */
    record View(String visitor, String campaign) {}

    /** Row of w1. */
    record Count(long views, long visitors) {}

    /** Row of w5. */
    record Activity(long events, long last) {}

    private static final Serde<Click> CLICK = new JsonSerde<>(Click.class);
    private static final Serde<View> VIEW = new JsonSerde<>(View.class);
    private static final Serde<Count> COUNT = new JsonSerde<>(Count.class);
    private static final Serde<Activity> ACTIVITY = new JsonSerde<>(Activity.class);

    private KafkaStreamsApp() {}

    public static void main(String[] arguments) {
        Contestant.run(arguments, KafkaStreamsApp::run);
    }

    private static void run(Contestant contestant) throws Exception {
        String application = "bench-kafka-streams-" + UUID.randomUUID();
        Properties settings = settings(contestant, application);
        StreamsBuilder builder = new StreamsBuilder();
        KStream<String, Click> clicks = humans(builder, contestant.topic);
        switch (contestant.workload) {
            case "w1" -> countPaths(builder, clicks, contestant);
            case "w3" -> sessions(clicks);
            case "w5" -> activity(clicks);
            default -> throw contestant.unknownWorkload();
        }
        KafkaStreams streams = new KafkaStreams(builder.build(settings), settings);
        streams.setUncaughtExceptionHandler(failure -> {
            Contestant.all().completeExceptionally(failure);
            return StreamThreadExceptionResponse.SHUTDOWN_CLIENT;
        });
        try {
            streams.start();
            Contestant.all().get();
            contestant.finish(rows(streams, contestant.workload));
        } finally {
            streams.close(Duration.ofSeconds(10));
            deleteTopics(contestant.bootstrap, application);
        }
    }

    private static Properties settings(Contestant contestant, String application) {
        Properties settings = new Properties();
        settings.put(StreamsConfig.APPLICATION_ID_CONFIG, application);
        settings.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, contestant.bootstrap);
        settings.put(StreamsConfig.STATE_DIR_CONFIG, "state");
        settings.put(StreamsConfig.NUM_STREAM_THREADS_CONFIG, 2);
        settings.put(StreamsConfig.PROCESSING_GUARANTEE_CONFIG, StreamsConfig.EXACTLY_ONCE_V2);
        settings.put(StreamsConfig.COMMIT_INTERVAL_MS_CONFIG, 1000);
        // The events are of the past: the broker would delete a changelog's segments while they are written.
        settings.put(
                StreamsConfig.WINDOW_STORE_CHANGE_LOG_ADDITIONAL_RETENTION_MS_CONFIG,
                Duration.ofDays(3650).toMillis());
        settings.put(StreamsConfig.TOPOLOGY_OPTIMIZATION_CONFIG, StreamsConfig.OPTIMIZE);
        settings.put(
                StreamsConfig.mainConsumerPrefix(ConsumerConfig.INTERCEPTOR_CLASSES_CONFIG),
                FirstRecord.class.getName());
        return settings;
    }

    private static KStream<String, Click> humans(StreamsBuilder builder, String topic) {
        return builder.stream(
                        topic,
                        Consumed.with(Serdes.String(), CLICK)
                                .withTimestampExtractor((record, previous) -> ((Click) record.value()).eventTime()))
                .filter((key, click) -> {
                    boolean human = !click.userAgent().contains("bot");
                    if (!human) {
                        Contestant.processed();
                    }
                    return human;
                });
    }

    /** w1. A set in an aggregate would be written anew for each event, so a store of its own says who was seen. */
    private static void countPaths(StreamsBuilder builder, KStream<String, Click> clicks, Contestant contestant) {
        builder.addStateStore(Stores.windowStoreBuilder(
                Stores.persistentWindowStore(FirstSeen.STORE, MINUTE.plus(GRACE), MINUTE, false),
                Serdes.String(),
                Serdes.ByteArray()));
        KStream<String, View> views;
        if (contestant.option("key", "visitor").equals("path")) {
            views = clicks.mapValues(KafkaStreamsApp::view);
        } else {
            views = clicks.map((key, click) -> KeyValue.pair(PageUrl.path(click.pageUrl()), view(click)))
                    .repartition(Repartitioned.with(Serdes.String(), VIEW)
                            .withName("by-path")
                            .withNumberOfPartitions(contestant.partitions));
        }
        views.processValues(() -> new FirstSeen(MINUTE), FirstSeen.STORE)
                .groupByKey(Grouped.with(Serdes.String(), Serdes.Boolean()))
                .windowedBy(TimeWindows.ofSizeAndGrace(MINUTE, GRACE))
                .aggregate(
                        () -> new Count(0, 0),
                        (path, first, count) -> {
                            counted();
                            return new Count(count.views() + 1, count.visitors() + (first ? 1 : 0));
                        },
                        Materialized.<String, Count, WindowStore<Bytes, byte[]>>as(TABLE)
                                .withKeySerde(Serdes.String())
                                .withValueSerde(COUNT));
    }

    private static View view(Click click) {
        return new View(click.visitor(), PageUrl.campaign(click.pageUrl()));
    }

    /** w3. */
    private static void sessions(KStream<String, Click> clicks) {
        clicks.groupByKey(Grouped.with(Serdes.String(), CLICK))
                .windowedBy(SessionWindows.ofInactivityGapAndGrace(Duration.ofMinutes(30), GRACE))
                .aggregate(
                        () -> 0L,
                        (visitor, click, events) -> {
                            counted();
                            return events + 1;
                        },
                        (visitor, one, other) -> one + other,
                        Materialized.<String, Long, SessionStore<Bytes, byte[]>>as(TABLE)
                                .withKeySerde(Serdes.String())
                                .withValueSerde(Serdes.Long()));
    }

    /** w5. */
    private static void activity(KStream<String, Click> clicks) {
        clicks.groupByKey(Grouped.with(Serdes.String(), CLICK))
                .windowedBy(TimeWindows.ofSizeAndGrace(Duration.ofHours(1), GRACE))
                .aggregate(
                        () -> new Activity(0, Long.MIN_VALUE),
                        (visitor, click, activity) -> {
                            counted();
                            return new Activity(activity.events() + 1, Math.max(activity.last(), click.eventTime()));
                        },
                        Materialized.<String, Activity, WindowStore<Bytes, byte[]>>as(TABLE)
                                .withKeySerde(Serdes.String())
                                .withValueSerde(ACTIVITY));
    }

    /** An event goes into the result. */
    private static void counted() {
        COUNTED.incrementAndGet();
        Contestant.processed();
    }

    /** The answer. A store has the last event a moment after it was counted: it is read until it has all of them. */
    private static List<Object[]> rows(KafkaStreams streams, String workload) {
        boolean sessions = workload.equals("w3");
        long deadline = System.nanoTime() + Duration.ofSeconds(30).toNanos();
        while (true) {
            List<Object[]> rows = sessions ? sessionRows(streams) : windowRows(streams);
            long events = rows.stream().mapToLong(row -> (long) row[sessions ? 3 : 2]).sum();
            if (events == COUNTED.get() || System.nanoTime() > deadline) {
                return rows;
            }
        }
    }

    private static List<Object[]> windowRows(KafkaStreams streams) {
        List<Object[]> rows = new ArrayList<>();
        var store = streams.store(
                StoreQueryParameters.fromNameAndType(TABLE, QueryableStoreTypes.<String, Object>windowStore()));
        try (KeyValueIterator<Windowed<String>, Object> all = store.all()) {
            all.forEachRemaining(row -> {
                long start = row.key.window().start();
                if (row.value instanceof Count count) {
                    rows.add(new Object[] {start, row.key.key(), count.views(), count.visitors()});
                } else if (row.value instanceof Activity activity) {
                    rows.add(new Object[] {start, row.key.key(), activity.events(), activity.last()});
                }
            });
        }
        return rows;
    }

    private static List<Object[]> sessionRows(KafkaStreams streams) {
        List<Object[]> rows = new ArrayList<>();
        var store = streams.store(
                StoreQueryParameters.fromNameAndType(TABLE, QueryableStoreTypes.<String, Long>sessionStore()));
        try (KeyValueIterator<Windowed<String>, Long> all = store.fetch(null, null)) {
            all.forEachRemaining(row -> rows.add(new Object[] {
                row.key.key(), row.key.window().start(), row.key.window().end(), row.value
            }));
        }
        return rows;
    }

    /** The repartition topic and the changelogs, which no later run reads. */
    private static void deleteTopics(String bootstrap, String application) throws Exception {
        Properties settings = new Properties();
        settings.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, bootstrap);
        try (Admin admin = Admin.create(settings)) {
            List<String> own = admin.listTopics().names().get().stream()
                    .filter(topic -> topic.startsWith(application))
                    .toList();
            admin.deleteTopics(own).all().get();
        }
    }
}
