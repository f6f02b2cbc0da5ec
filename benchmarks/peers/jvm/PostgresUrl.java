package peers;

import java.util.regex.Matcher;
import java.util.regex.Pattern;

/** A libpq URL as JDBC has it. */
public final class PostgresUrl {
    private static final Pattern URL =
            Pattern.compile("postgres(?:ql)?://([^:@/]*)(?::([^@/]*))?@([^/?]*)/([^?]*)(?:\\?host=([^&]*))?");
    private static final String UNIX_SOCKETS = "org.newsclub.net.unix.AFUNIXSocketFactory$FactoryArg";

    private PostgresUrl() {}

    /** With {@code ?host=} the folder of a Unix socket. Throws IllegalArgumentException for another form. */
    public static String toJdbc(String url) {
        Matcher parts = URL.matcher(url);
        if (!parts.matches()) {
            throw new IllegalArgumentException("not a URL of PostgreSQL that this program knows: " + url);
        }
        String host = parts.group(3).isEmpty() ? "localhost" : parts.group(3);
        StringBuilder jdbc = new StringBuilder("jdbc:postgresql://");
        jdbc.append(host).append('/').append(parts.group(4)).append("?user=").append(parts.group(1));
        if (parts.group(2) != null) {
            jdbc.append("&password=").append(parts.group(2));
        }
        if (parts.group(5) != null) {
            jdbc.append("&sslmode=disable&socketFactory=").append(UNIX_SOCKETS);
            jdbc.append("&socketFactoryArg=").append(parts.group(5)).append("/.s.PGSQL.5432");
        }
        return jdbc.toString();
    }
}
