package peers;

import java.io.BufferedWriter;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.HashMap;
import java.util.Locale;
import java.util.Map;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.atomic.AtomicLong;

/**
 * What the driver tells a contestant, its clock and its answer: the contract is the README of the folder above.
 *
 * <p>Clock and count are static: engines serialise the functions they are given, and all of them run in this process.
 */
public final class Contestant {
    private static final AtomicLong BEGIN = new AtomicLong();
    private static final AtomicLong END = new AtomicLong();
    private static final AtomicLong PROCESSED = new AtomicLong();
    private static final CompletableFuture<Void> ALL = new CompletableFuture<>();
    private static volatile long expected;

    public final String workload;
    public final String bootstrap;
    public final String topic;
    public final int partitions;
    public final long events;
    private final Path answer;
    private final Map<String, String> options = new HashMap<>();

    /** Reads {@code --name value} pairs. Throws IllegalArgumentException when one of the contract's is not there. */
    public Contestant(String[] arguments) {
        for (int at = 0; at + 1 < arguments.length; at += 2) {
            if (!arguments[at].startsWith("--")) {
                throw new IllegalArgumentException("an option was expected, not " + arguments[at]);
            }
            options.put(arguments[at].substring(2), arguments[at + 1]);
        }
        workload = required("workload");
        bootstrap = required("bootstrap");
        topic = required("topic");
        partitions = Integer.parseInt(required("partitions"));
        events = Long.parseLong(required("events"));
        answer = Path.of(required("answer"));
        expected = events;
    }

    /** The value of a further option, or {@code otherwise}. */
    public String option(String name, String otherwise) {
        return options.getOrDefault(name, otherwise);
    }

    /** What to throw for a workload that the program does not have. */
    public IllegalArgumentException unknownWorkload() {
        return new IllegalArgumentException("this contestant does not do the workload " + workload);
    }

    /** An event was seen: the first call starts the clock. */
    public static void begin() {
        begin(System.nanoTime());
    }

    /** The same, {@code nanos} of System.nanoTime() ago or now. */
    public static void begin(long nanos) {
        if (BEGIN.get() == 0) {
            BEGIN.compareAndSet(0, nanos);
        }
    }

    /** A part of the result became readable: the last call stops the clock. */
    public static void end() {
        END.set(System.nanoTime());
    }

    /** One more event is in the result; the last one of all stops the clock. */
    public static void processed() {
        if (PROCESSED.incrementAndGet() == expected) {
            end();
            ALL.complete(null);
        }
    }

    /** How many events there are. */
    public static long expected() {
        return expected;
    }

    /** Complete when all events were {@link #processed}; an engine that fails completes it with its exception. */
    public static CompletableFuture<Void> all() {
        return ALL;
    }

    /** Writes the answer, one row of integers and texts on each line, and then the clock. */
    public void finish(Iterable<Object[]> rows) throws IOException {
        write(rows);
        tell();
    }

    /** Prints the clock, for an answer that is elsewhere. */
    public static void tell() {
        double begin = BEGIN.get() / 1e9;
        double end = END.get() / 1e9;
        System.out.println(String.format(Locale.ROOT, "RESULT {\"begin\": %.6f, \"end\": %.6f}", begin, end));
        System.out.flush();
    }

    private void write(Iterable<Object[]> rows) throws IOException {
        try (BufferedWriter out = Files.newBufferedWriter(answer)) {
            StringBuilder line = new StringBuilder();
            for (Object[] row : rows) {
                line.setLength(0);
                for (Object value : row) {
                    line.append(line.isEmpty() ? "[" : ", ");
                    if (value instanceof Number) {
                        line.append(value);
                    } else {
                        appendText(line, (String) value);
                    }
                }
                out.write(line.append("]\n").toString());
            }
        }
    }

    /** The program of a contestant, which {@link #run} ends as the driver wants it. */
    public interface Program {
        void run(Contestant contestant) throws Exception;
    }

    /** Runs a program; its exception goes to stderr, and the process ends with 0 or 1 whatever threads are left. */
    public static void run(String[] arguments, Program program) {
        int status = 0;
        try {
            program.run(new Contestant(arguments));
        } catch (Exception failure) {
            failure.printStackTrace();
            Throwable cause = failure;
            while (cause.getCause() != null) {
                cause = cause.getCause();
            }
            System.err.println(cause); // last, because the driver shows the end of what was said
            status = 1;
        }
        System.err.flush();
        // Not exit: what an engine does on its way out takes seconds, and the answer is written.
        Runtime.getRuntime().halt(status);
    }

    private String required(String name) {
        String value = options.get(name);
        if (value == null) {
            throw new IllegalArgumentException("--" + name + " is missing");
        }
        return value;
    }

    private static void appendText(StringBuilder line, String text) {
        line.append('"');
        for (int at = 0; at < text.length(); at++) {
            char character = text.charAt(at);
            if (character == '"' || character == '\\') {
                line.append('\\').append(character);
            } else if (character < ' ') {
                line.append(String.format("\\u%04x", (int) character));
            } else {
                line.append(character);
            }
        }
        line.append('"');
    }
}
