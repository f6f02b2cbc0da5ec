package peers;

import java.time.Duration;
import java.util.HashSet;
import java.util.Set;
import java.util.UUID;
import org.apache.flink.api.common.eventtime.WatermarkStrategy;
import org.apache.flink.api.common.functions.AggregateFunction;
import org.apache.flink.connector.kafka.source.KafkaSource;
import org.apache.flink.connector.kafka.source.enumerator.initializer.OffsetsInitializer;
import org.apache.flink.formats.json.JsonDeserializationSchema;
import org.apache.flink.shaded.jackson2.com.fasterxml.jackson.annotation.JsonIgnoreProperties;
import org.apache.flink.shaded.jackson2.com.fasterxml.jackson.annotation.JsonProperty;
import org.apache.flink.streaming.api.datastream.DataStream;
import org.apache.flink.streaming.api.environment.StreamExecutionEnvironment;
import org.apache.flink.streaming.api.functions.windowing.ProcessWindowFunction;
import org.apache.flink.streaming.api.windowing.assigners.EventTimeSessionWindows;
import org.apache.flink.streaming.api.windowing.assigners.TumblingEventTimeWindows;
import org.apache.flink.streaming.api.windowing.windows.TimeWindow;
import org.apache.flink.util.Collector;

/** Flink's DataStream API: keyed event-time windows with incremental aggregation. */
public final class FlinkDataStream {
    /** The fields that the workloads need. */
    @JsonIgnoreProperties(ignoreUnknown = true)
    public static final class Click {
        @JsonProperty("event_time")
        public long eventTime;

        @JsonProperty("visitor_id")
        public String visitor;

        @JsonProperty("page_url")
        public String pageUrl;

        @JsonProperty("user_agent")
        public String userAgent;
    }

    /** A click as it travels between tasks, by path. */
    public static final class View {
        public String path;
        public String campaign;
        public String visitor;

        public View() {}

        View(Click click) {
            path = PageUrl.path(click.pageUrl);
            campaign = PageUrl.campaign(click.pageUrl);
            visitor = click.visitor;
        }
    }

    /** A click as it travels between tasks, by visitor. */
    public static final class Visit {
        public String visitor;
        public long time;

        public Visit() {}

        Visit(Click click) {
            visitor = click.visitor;
            time = click.eventTime;
        }
    }

    /** Accumulator of w1. */
    public static final class Audience {
        public long views;
        public Set<String> visitors = new HashSet<>();
    }

    /** Accumulator of w3 and w5. */
    public static final class Span {
        public long first = Long.MAX_VALUE;
        public long last = Long.MIN_VALUE;
        public long events;
    }

    private FlinkDataStream() {}

    public static void main(String[] arguments) {
        Contestant.run(arguments, FlinkDataStream::run);
    }

    private static void run(Contestant contestant) throws Exception {
        StreamExecutionEnvironment environment =
                StreamExecutionEnvironment.getExecutionEnvironment(FlinkEnvironment.settings());
        KafkaSource<Click> source = KafkaSource.<Click>builder()
                .setBootstrapServers(contestant.bootstrap)
                .setTopics(contestant.topic)
                .setGroupId("bench-flink-" + UUID.randomUUID())
                .setStartingOffsets(OffsetsInitializer.earliest())
                .setBounded(OffsetsInitializer.latest())
                .setValueOnlyDeserializer(new JsonDeserializationSchema<>(Click.class))
                .setProperty("interceptor.classes", FirstRecord.class.getName())
                .build();
        DataStream<Click> humans = environment
                .fromSource(
                        source,
                        WatermarkStrategy.<Click>forMonotonousTimestamps()
                                .withTimestampAssigner((click, kafka) -> click.eventTime),
                        "clicks")
                .filter(click -> !click.userAgent.contains("bot"));
        DataStream<Object[]> rows =
                switch (contestant.workload) {
                    case "w1" -> humans.map(View::new)
                            .keyBy(view -> view.path)
                            .window(TumblingEventTimeWindows.of(Duration.ofMinutes(1)))
                            .aggregate(new CountViews(), new PathRow());
                    case "w3" -> humans.map(Visit::new)
                            .keyBy(visit -> visit.visitor)
                            .window(EventTimeSessionWindows.withGap(Duration.ofMinutes(30)))
                            .aggregate(new Spans(), new SessionRow());
                    case "w5" -> humans.map(Visit::new)
                            .keyBy(visit -> visit.visitor)
                            .window(TumblingEventTimeWindows.of(Duration.ofHours(1)))
                            .aggregate(new Spans(), new HourRow());
                    default -> throw contestant.unknownWorkload();
                };
        rows.sinkTo(new Keep());
        environment.execute();
        contestant.finish(Keep.ROWS);
    }

    private static final class CountViews implements AggregateFunction<View, Audience, Audience> {
        @Override
        public Audience createAccumulator() {
            return new Audience();
        }

        @Override
        public Audience add(View view, Audience audience) {
            audience.views++;
            audience.visitors.add(view.visitor);
            return audience;
        }

        @Override
        public Audience getResult(Audience audience) {
            return audience;
        }

        @Override
        public Audience merge(Audience one, Audience other) {
            one.views += other.views;
            one.visitors.addAll(other.visitors);
            return one;
        }
    }

    private static final class Spans implements AggregateFunction<Visit, Span, Span> {
        @Override
        public Span createAccumulator() {
            return new Span();
        }

        @Override
        public Span add(Visit visit, Span span) {
            span.first = Math.min(span.first, visit.time);
            span.last = Math.max(span.last, visit.time);
            span.events++;
            return span;
        }

        @Override
        public Span getResult(Span span) {
            return span;
        }

        @Override
        public Span merge(Span one, Span other) {
            one.first = Math.min(one.first, other.first);
            one.last = Math.max(one.last, other.last);
            one.events += other.events;
            return one;
        }
    }

    private static final class PathRow extends ProcessWindowFunction<Audience, Object[], String, TimeWindow> {
        @Override
        public void process(String path, Context window, Iterable<Audience> one, Collector<Object[]> out) {
            Audience audience = one.iterator().next();
            long visitors = audience.visitors.size();
            out.collect(new Object[] {window.window().getStart(), path, audience.views, visitors});
        }
    }

    private static final class SessionRow extends ProcessWindowFunction<Span, Object[], String, TimeWindow> {
        @Override
        public void process(String visitor, Context window, Iterable<Span> one, Collector<Object[]> out) {
            Span span = one.iterator().next();
            out.collect(new Object[] {visitor, span.first, span.last, span.events});
        }
    }

    private static final class HourRow extends ProcessWindowFunction<Span, Object[], String, TimeWindow> {
        @Override
        public void process(String visitor, Context window, Iterable<Span> one, Collector<Object[]> out) {
            Span span = one.iterator().next();
            out.collect(new Object[] {window.window().getStart(), visitor, span.events, span.last});
        }
    }
}
