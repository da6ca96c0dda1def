// How many processors the system lets this process use.
#pragma once

namespace fastsoftmax {

// Those in the process's affinity mask. At least 1.
int allowed_processors();

// The whole processors that the CPU quota of the process's cgroup amounts to, as containers have one; at least 1, and
// INT_MAX where there is no quota.
int processors_within_quota();

}  // namespace fastsoftmax
