package peers;

import java.io.IOException;
import java.util.Map;
import org.apache.flink.api.common.serialization.BulkWriter;
import org.apache.flink.core.fs.FSDataOutputStream;
import org.apache.flink.table.data.RowData;
import org.apache.hadoop.conf.Configuration;
import org.apache.parquet.hadoop.ParquetWriter;
import org.apache.parquet.hadoop.api.WriteSupport;
import org.apache.parquet.hadoop.metadata.CompressionCodecName;
import org.apache.parquet.io.OutputFile;
import org.apache.parquet.io.PositionOutputStream;
import org.apache.parquet.io.api.Binary;
import org.apache.parquet.io.api.RecordConsumer;
import org.apache.parquet.schema.MessageType;
import org.apache.parquet.schema.MessageTypeParser;
import org.apache.parquet.schema.PrimitiveType.PrimitiveTypeName;
import org.apache.parquet.schema.Type;

/** A bulk format of Flink's file sink: rows of text, integers and doubles as Parquet, zstd. */
final class ParquetRows implements BulkWriter.Factory<RowData> {
    private final String schema;

    /** {@code schema}: the columns in the order of the rows, as Parquet writes a message type. */
    ParquetRows(String schema) {
        this.schema = schema;
    }

    @Override
    public BulkWriter<RowData> create(FSDataOutputStream out) throws IOException {
        MessageType columns = MessageTypeParser.parseMessageType(schema);
        ParquetWriter<RowData> writer = new Builder(new FlinkFile(out), columns)
                .withCompressionCodec(CompressionCodecName.ZSTD)
                .build();
        return new BulkWriter<>() {
            @Override
            public void addElement(RowData row) throws IOException {
                writer.write(row);
            }

            @Override
            public void flush() {}

            @Override
            public void finish() throws IOException {
                writer.close();
            }
        };
    }

    private static final class Builder extends ParquetWriter.Builder<RowData, Builder> {
        private final MessageType columns;

        Builder(OutputFile file, MessageType columns) {
            super(file);
            this.columns = columns;
        }

        @Override
        protected Builder self() {
            return this;
        }

        @Override
        protected WriteSupport<RowData> getWriteSupport(Configuration unused) {
            return new Rows(columns);
        }
    }

    private static final class Rows extends WriteSupport<RowData> {
        private final MessageType columns;
        private RecordConsumer consumer;

        Rows(MessageType columns) {
            this.columns = columns;
        }

        @Override
        public WriteContext init(Configuration unused) {
            return new WriteContext(columns, Map.of());
        }

        @Override
        public void prepareForWrite(RecordConsumer recordConsumer) {
            consumer = recordConsumer;
        }

        @Override
        public void write(RowData row) {
            consumer.startMessage();
            for (int at = 0; at < columns.getFieldCount(); at++) {
                if (!row.isNullAt(at)) {
                    Type column = columns.getType(at);
                    consumer.startField(column.getName(), at);
                    add(row, at, column.asPrimitiveType().getPrimitiveTypeName());
                    consumer.endField(column.getName(), at);
                }
            }
            consumer.endMessage();
        }

        private void add(RowData row, int at, PrimitiveTypeName type) {
            switch (type) {
                case INT64 -> consumer.addLong(row.getLong(at));
                case DOUBLE -> consumer.addDouble(row.getDouble(at));
                default -> consumer.addBinary(Binary.fromConstantByteArray(row.getString(at).toBytes()));
            }
        }
    }

    /** Flink opens and closes the file: Parquet only writes into it. */
    private record FlinkFile(FSDataOutputStream out) implements OutputFile {
        @Override
        public PositionOutputStream create(long unused) {
            return new PositionOutputStream() {
                @Override
                public long getPos() throws IOException {
                    return out.getPos();
                }

                @Override
                public void write(int octet) throws IOException {
                    out.write(octet);
                }

                @Override
                public void write(byte[] octets, int from, int count) throws IOException {
                    out.write(octets, from, count);
                }

                @Override
                public void flush() throws IOException {
                    out.flush();
                }

                @Override
                public void close() throws IOException {
                    out.flush();
                }
            };
        }

        @Override
        public PositionOutputStream createOrOverwrite(long unused) {
            return create(unused);
        }

        @Override
        public boolean supportsBlockSize() {
            return false;
        }

        @Override
        public long defaultBlockSize() {
            return 0;
        }
    }
}
