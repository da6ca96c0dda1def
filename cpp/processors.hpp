// How many processors the system lets this process use.
#pragma once

namespace fastsoftmax {

// The number of processors in the process's affinity mask; at least 1.
int allowed_processors();

// The CPU quota of the process's cgroup, which containers often have, in whole processors (rounded down, at least 1);
// INT_MAX if there is no quota.
int processors_within_quota();

}  // namespace fastsoftmax
