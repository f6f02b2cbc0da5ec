package peers;

import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.util.Iterator;
import java.util.List;
import java.util.stream.Collectors;
import org.apache.spark.api.java.function.ForeachPartitionFunction;
import org.apache.spark.sql.Row;

/** Upserts the rows of a partition into a table, in one transaction. */
final class Upsert implements ForeachPartitionFunction<Row> {
    private final String jdbcUrl;
    private final String statement;
    private final int columns;

    /** {@code columns}: of the table and of each row, the first {@code keys} of which are the table's primary key. */
    Upsert(String jdbcUrl, String table, List<String> columns, int keys) {
        this.jdbcUrl = jdbcUrl;
        this.columns = columns.size();
        String changes = columns.subList(keys, columns.size()).stream()
                .map(column -> column + " = EXCLUDED." + column)
                .collect(Collectors.joining(", "));
        statement = "INSERT INTO " + table + " (" + String.join(", ", columns) + ") VALUES (?"
                + ", ?".repeat(columns.size() - 1) + ") ON CONFLICT (" + String.join(", ", columns.subList(0, keys))
                + ") DO UPDATE SET " + changes;
    }

    @Override
    public void call(Iterator<Row> rows) throws Exception {
        try (Connection connection = DriverManager.getConnection(jdbcUrl)) {
            connection.setAutoCommit(false);
            try (PreparedStatement upsert = connection.prepareStatement(statement)) {
                while (rows.hasNext()) {
                    Row row = rows.next();
                    for (int column = 0; column < columns; column++) {
                        upsert.setObject(column + 1, row.get(column));
                    }
                    upsert.addBatch();
                }
                upsert.executeBatch();
            }
            connection.commit();
        }
    }
}
