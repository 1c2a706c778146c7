// Where threads wait for each other: barriers and warp primitives.

#include "emulator/launch.h"
#include "emulator/profile.h"

namespace slowfast::emulator {

void Launch::lanes_met(int warp, uint32_t mask) {
    const int lanes = std::min(kWarp, count_ - warp * kWarp);
    if (mask == 0xffffffffu >> (kWarp - lanes)) profile::warp_met(warp);
}

void Launch::wait(const char* what, Site site) {
    EmulatedThread& t = self();
    t.waits_at = what;
    t.site = site;
    run_next(t);
}

std::string Launch::who_waits_where() const {
    std::vector<std::pair<std::string, std::string>> groups;  // place, thread ranges
    for (int i = 0; i < count_;) {
        const auto place = [&](int thread) {
            const EmulatedThread& t = *threads_[static_cast<size_t>(thread)];
            return t.done ? std::string("have returned")
                          : text_of("wait at %s (%s)", t.waits_at, text_of(t.site).c_str());
        };
        const std::string here = place(i);
        const int first = i;
        while (i < count_ && place(i) == here) ++i;
        const std::string range = i - first > 1 ? text_of("%d-%d", first, i - 1) : text_of("%d", first);
        auto group = std::find_if(groups.begin(), groups.end(), [&](auto& g) { return g.first == here; });
        if (group == groups.end()) {
            groups.emplace_back(here, range);
        } else {
            group->second += ", " + range;
        }
    }
    std::string text;
    for (const auto& [place, threads] : groups) {
        text += (text.empty() ? "threads " : "; threads ") + threads + " " + place;
    }
    return text;
}

Meeting& Launch::meeting_of(uint32_t mask, const char* what, Work work, Site site) {
    const EmulatedThread& t = self();
    if ((mask >> t.lane & 1) == 0) {
        fail_at(what, site, "lane %d is not in its mask 0x%08x", t.lane, mask);
    }
    WarpMeetings& meetings = meetings_[t.warp];
    for (uint32_t left = meetings.open; left; left &= left - 1) {
        Meeting& m = meetings.slots[__builtin_ctz(left)];
        if (m.mask != mask) continue;
        if (m.work != work || !same(m.site, site)) {
            fail("divergent warp: lanes 0x%08x wait at %s (%s), lane %d comes to %s (%s)", m.arrived, m.what,
                 text_of(m.site).c_str(), t.lane, what, text_of(site).c_str());
        }
        return m;
    }
    // Every open meeting has a lane that waits there, so one of 32 is free.
    Meeting& m = meetings.slots[__builtin_ctz(~meetings.open)];
    meetings.open |= ~meetings.open & (meetings.open + 1);
    m.mask = mask;
    m.arrived = 0;
    m.work = work;
    m.what = what;
    m.site = site;
    return m;
}

void Launch::meet(const char* what, uint32_t mask, Work work, void* arguments, Site site) {
    EmulatedThread& t = self();
    Meeting& m = meeting_of(mask, what, work, site);
    m.arguments[t.lane] = arguments;
    m.arrived |= 1u << t.lane;
    if (m.arrived == m.mask) {
        work(m.arguments, mask);
        if (__builtin_expect(profiling, false)) lanes_met(t.warp, mask);
        meetings_[t.warp].open &= ~(1u << (&m - meetings_[t.warp].slots));
        scheduler_.ready.add(t.warp, mask);
    }
    wait(what, site);
}

void Launch::arrive(const char* what, int id, int threads, Site site) {
    EmulatedThread& t = self();
    if (id < 0 || id >= kBarriers || threads < 1 || threads > count_ ||
        (threads % kWarp != 0 && threads != count_)) {
        fail_at(what, site,
                "expected barriers 0 to 15 of whole warps of %d threads, got barrier %d of %d threads",
                count_, id, threads);
    }
    Barrier& b = barriers_[id];
    if (b.arrived == 0) {
        b.expected = threads;
        b.site = site;
    } else if (b.expected != threads) {
        fail_at(what, site, "barrier %d is waited for by %d threads (%s), got %d", id, b.expected,
                text_of(b.site).c_str(), threads);
    } else if (id == 0 && !same(b.site, site)) {
        fail("divergent barrier: %d threads wait at syncthreads (%s), thread %d comes to syncthreads (%s)",
             b.arrived, text_of(b.site).c_str(), t.id, text_of(site).c_str());
    }
    b.waiting.add(t.warp, 1u << t.lane);
    if (++b.arrived == b.expected) {
        if (__builtin_expect(profiling, false)) {
            profile::barrier_opened();
            for (uint32_t left = b.waiting.warps; left; left &= left - 1) {
                const int warp = __builtin_ctz(left);
                lanes_met(warp, b.waiting.lanes[warp]);
            }
        }
        scheduler_.ready.add_all(b.waiting);
        b.arrived = 0;
    }
    wait(what, site);
}

void meet(const char* what, uint32_t mask, Work work, void* arguments, Site site) {
    the_launch().meet(what, mask, work, arguments, site);
}

void barrier(const char* what, int id, int threads, Site site) {
    the_launch().arrive(what, id, threads, site);
}

}  // namespace slowfast::emulator
