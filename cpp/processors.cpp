#include "processors.hpp"

#include <algorithm>
#include <climits>
#include <thread>

#ifdef __linux__
#include <sched.h>

#include <fstream>
#include <sstream>
#include <string>
#endif

namespace fastsoftmax {

#ifdef __linux__

int allowed_processors() {
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) return std::max(CPU_COUNT(&allowed), 1);
    return std::max<int>(std::thread::hardware_concurrency(), 1);  // more processors than the mask has bits
}

namespace {

// How long a group may compute in each period, in microseconds. Unless both are positive, there is no limit.
struct Quota {
    double time = 0, period = 0;
};

// Version 2 has both numbers in one file, "max" for no limit; version 1 has a file for each, -1 for no limit.
Quota quota_of(const std::string& folder, bool version2) {
    Quota quota;
    if (version2) {
        std::ifstream(folder + "/cpu.max") >> quota.time >> quota.period;
    } else {
        std::ifstream(folder + "/cpu.cfs_quota_us") >> quota.time;
        std::ifstream(folder + "/cpu.cfs_period_us") >> quota.period;
    }
    return quota;
}

// The smallest quota, in whole processors, of the group at `path` below the mount point and of all groups that contain
// it. In a container the path may be the host's, and only the mount point itself is visible.
int least_quota(const std::string& mount_point, std::string path, bool version2) {
    int least = INT_MAX;
    for (;;) {
        const Quota quota = quota_of(mount_point + path, version2);
        if (quota.time > 0 && quota.period > 0) {
            const double processors = std::min(quota.time / quota.period, 1e6);
            least = std::min(least, std::max(static_cast<int>(processors), 1));
        }
        const std::size_t parent = path.rfind('/');
        if (parent == std::string::npos) return least;
        path.resize(parent);
    }
}

}  // namespace

// A line of the file is "number:controllers:path"; version 2 has the number 0 and no controllers. In version 1,
// each controller has a folder, or a link to one that several share; the line names these in any order.
int processors_within_quota() {
    int least = INT_MAX;
    std::ifstream groups("/proc/self/cgroup");
    for (std::string line; std::getline(groups, line);) {
        std::istringstream fields(line);
        std::string number, controllers, path;
        std::getline(std::getline(std::getline(fields, number, ':'), controllers, ':'), path);
        const std::string listed = "," + controllers + ",";
        if (controllers.empty())
            least = std::min(least, least_quota("/sys/fs/cgroup", path, true));
        else if (listed.find(",cpu,") != std::string::npos)
            least = std::min(least, least_quota("/sys/fs/cgroup/cpu", path, false));
    }
    return least;
}

#else

int allowed_processors() { return std::max<int>(std::thread::hardware_concurrency(), 1); }

int processors_within_quota() { return INT_MAX; }

#endif

}  // namespace fastsoftmax
