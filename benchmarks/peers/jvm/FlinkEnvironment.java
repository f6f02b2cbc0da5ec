package peers;

import java.nio.file.Path;
import java.time.Duration;
import org.apache.flink.configuration.CheckpointingOptions;
import org.apache.flink.configuration.Configuration;
import org.apache.flink.configuration.CoreOptions;
import org.apache.flink.configuration.PipelineOptions;
import org.apache.flink.configuration.RestartStrategyOptions;
import org.apache.flink.configuration.StateBackendOptions;

/** How both Flink programs run: in a local cluster of this process, two tasks beside each other, state on the heap. */
final class FlinkEnvironment {
    private FlinkEnvironment() {}

    /** Settings of a job that checkpoints exactly once (the default mode) into the folder it was started in. */
    static Configuration settings() {
        Configuration settings = new Configuration();
        settings.set(CoreOptions.DEFAULT_PARALLELISM, 2);
        settings.set(PipelineOptions.OBJECT_REUSE, true);
        // A job that fails has to say so: with checkpoints the default is to try again for ever.
        settings.set(RestartStrategyOptions.RESTART_STRATEGY, "none");
        settings.set(StateBackendOptions.STATE_BACKEND, "hashmap");
        settings.set(CheckpointingOptions.CHECKPOINTING_INTERVAL, Duration.ofSeconds(5));
        settings.set(
                CheckpointingOptions.CHECKPOINTS_DIRECTORY,
                Path.of("checkpoints").toAbsolutePath().toUri().toString());
        return settings;
    }
}
