package peers;

import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.util.Iterator;
import org.apache.spark.api.java.function.ForeachPartitionFunction;
import org.apache.spark.sql.Row;

/** Writes the rows of a partition into the table of w4, in one transaction. */
final class PageCounts implements ForeachPartitionFunction<Row> {
    private static final String UPSERT =
            """
            INSERT INTO page_counts (window_start, path, views, visitors) VALUES (?, ?, ?, ?)
            ON CONFLICT (window_start, path) DO UPDATE SET views = EXCLUDED.views, visitors = EXCLUDED.visitors""";

    private final String jdbcUrl;

    PageCounts(String jdbcUrl) {
        this.jdbcUrl = jdbcUrl;
    }

    @Override
    public void call(Iterator<Row> rows) throws Exception {
        try (Connection connection = DriverManager.getConnection(jdbcUrl)) {
            connection.setAutoCommit(false);
            try (PreparedStatement upsert = connection.prepareStatement(UPSERT)) {
                while (rows.hasNext()) {
                    Row row = rows.next();
                    for (int column = 0; column < 4; column++) {
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
