package peers;

import com.fasterxml.jackson.core.JsonProcessingException;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.ObjectReader;
import com.fasterxml.jackson.databind.ObjectWriter;
import java.io.IOException;
import java.io.UncheckedIOException;
import org.apache.kafka.common.serialization.Serdes;

/** A serde of one record class as JSON, as Kafka Streams' own examples have it. */
final class JsonSerde<T> extends Serdes.WrapperSerde<T> {
    private static final ObjectMapper MAPPER = new ObjectMapper();

    JsonSerde(Class<T> kind) {
        this(MAPPER.writerFor(kind), MAPPER.readerFor(kind));
    }

    private JsonSerde(ObjectWriter writer, ObjectReader reader) {
        super(
                (topic, value) -> {
                    try {
                        return value == null ? null : writer.writeValueAsBytes(value);
                    } catch (JsonProcessingException error) {
                        throw new UncheckedIOException(error);
                    }
                },
                (topic, bytes) -> {
                    try {
                        return bytes == null ? null : reader.readValue(bytes);
                    } catch (IOException error) {
                        throw new UncheckedIOException(error);
                    }
                });
    }
}
