package peers;

import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;
import org.apache.kafka.clients.consumer.OffsetAndMetadata;
import org.apache.kafka.common.TopicPartition;

/** Also completes {@link Contestant#all} when the positions behind all events, which begin at 0, are committed. */
public final class Committed extends FirstRecord {
    private static final Map<TopicPartition, Long> POSITIONS = new ConcurrentHashMap<>();

    @Override
    public void onCommit(Map<TopicPartition, OffsetAndMetadata> offsets) {
        offsets.forEach((partition, position) -> POSITIONS.put(partition, position.offset()));
        if (POSITIONS.values().stream().mapToLong(Long::longValue).sum() >= Contestant.expected()) {
            Contestant.all().complete(null);
        }
    }
}
