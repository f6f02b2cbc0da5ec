package peers;

import java.time.Duration;
import org.apache.kafka.streams.processor.api.FixedKeyProcessor;
import org.apache.kafka.streams.processor.api.FixedKeyProcessorContext;
import org.apache.kafka.streams.processor.api.FixedKeyRecord;
import org.apache.kafka.streams.state.WindowStore;

/** Says of each view whether it is the visitor's first of the path in its window, which a store remembers. */
final class FirstSeen implements FixedKeyProcessor<String, KafkaStreamsApp.View, Boolean> {
    static final String STORE = "seen";
    private static final byte[] SEEN = {};

    private final long windowMillis;
    private FixedKeyProcessorContext<String, Boolean> context;
    private WindowStore<String, byte[]> seen;

    FirstSeen(Duration window) {
        windowMillis = window.toMillis();
    }

    @Override
    public void init(FixedKeyProcessorContext<String, Boolean> context) {
        this.context = context;
        seen = context.getStateStore(STORE);
    }

    @Override
    public void process(FixedKeyRecord<String, KafkaStreamsApp.View> record) {
        long window = record.timestamp() - record.timestamp() % windowMillis;
        String key = record.key() + ' ' + record.value().visitor();
        boolean first = seen.fetch(key, window) == null;
        if (first) {
            seen.put(key, SEEN, window);
        }
        context.forward(record.withValue(first));
    }
}
