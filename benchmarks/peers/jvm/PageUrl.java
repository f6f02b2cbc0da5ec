package peers;

/** The two parts of {@code page_url} that the workload asks for, cut out by hand to the peers' advantage. */
public final class PageUrl {
    private static final String CAMPAIGN = "utm_campaign=";

    private PageUrl() {}

    /** What stands between the host and the query. */
    public static String path(String url) {
        int start = url.indexOf('/', url.indexOf("//") + 2);
        if (start < 0) {
            return "";
        }
        int end = start;
        while (end < url.length() && url.charAt(end) != '?' && url.charAt(end) != '#') {
            end++;
        }
        return url.substring(start, end);
    }

    /** The value of {@code utm_campaign}, or null. */
    public static String campaign(String url) {
        int start = url.indexOf(CAMPAIGN);
        if (start < 0) {
            return null;
        }
        start += CAMPAIGN.length();
        int end = url.indexOf('&', start);
        return end < 0 ? url.substring(start) : url.substring(start, end);
    }
}
