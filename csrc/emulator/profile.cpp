// Requests of a warp, gathered line by line; see profile.h.

#include "emulator/profile.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

namespace slowfast::emulator {

bool profiling = false;

namespace {

constexpr int kLanes = 32, kBanks = 32, kBankBytes = 4, kSector = 32;

const char* const kAccessNames[] = {"load", "store", "copy", "matrix"};

// One line's requests of one kind.
struct Kind {
    const char* file;
    int line, width;
    Access access;
    bool shared;

    bool operator==(const Kind& o) const {
        return file == o.file && line == o.line && width == o.width && access == o.access &&
               shared == o.shared;
    }
};

struct Request {
    uint32_t mask = 0;
    uintptr_t at[kLanes];
    uint8_t bytes[kLanes];
};

struct Counts {
    uint64_t requests = 0, lanes = 0, bytes = 0, passes = 0, least = 0;

    void operator+=(const Counts& o) {
        requests += o.requests;
        lanes += o.lanes;
        bytes += o.bytes;
        passes += o.passes;
        least += o.least;
    }
};

uint64_t divided(uint64_t a, uint64_t b) {
    return (a + b - 1) / b;
}

// Words that the fullest bank is asked for by lanes [first, last).
uint64_t wavefronts(const Request& r, int first, int last) {
    std::array<std::pair<uintptr_t, uintptr_t>, kLanes * 4> words;  // bank, word
    size_t count = 0;
    for (int lane = first; lane < last; ++lane) {
        if ((r.mask >> lane & 1) == 0) continue;
        for (uintptr_t word = r.at[lane] / kBankBytes;
             word * kBankBytes < r.at[lane] + static_cast<uintptr_t>(r.bytes[lane]); ++word) {
            words[count++] = {word % kBanks, word};
        }
    }
    const auto end = words.begin() + static_cast<ptrdiff_t>(count);
    std::sort(words.begin(), end);
    uint64_t most = 0, in_bank = 0;
    for (size_t i = 0; i < count; ++i) {
        if (i > 0 && words[i] == words[i - 1]) continue;
        in_bank = i > 0 && words[i].first == words[i - 1].first ? in_bank + 1 : 1;
        most = std::max(most, in_bank);
    }
    return most;
}

// Sectors touched, and the least for as many different bytes.
std::pair<uint64_t, uint64_t> sectors(const Request& r) {
    std::array<std::pair<uintptr_t, uintptr_t>, kLanes> spans;
    size_t count = 0;
    for (int lane = 0; lane < kLanes; ++lane) {
        if (r.mask >> lane & 1) spans[count++] = {r.at[lane], r.at[lane] + r.bytes[lane]};
    }
    std::sort(spans.begin(), spans.begin() + static_cast<ptrdiff_t>(count));
    uint64_t touched = 0, bytes = 0;
    uintptr_t end = 0, next_sector = 0;
    for (size_t i = 0; i < count; ++i) {
        const uintptr_t from = std::max(spans[i].first, end);
        if (from < spans[i].second) {
            bytes += spans[i].second - from;
            end = spans[i].second;
        }
        const uintptr_t first = std::max(spans[i].first / kSector, next_sector);
        const uintptr_t last = (spans[i].second - 1) / kSector;
        if (first <= last) {
            touched += last - first + 1;
            next_sector = last + 1;
        }
    }
    return {touched, divided(bytes, kSector)};
}

Counts counts_of(const Request& r, const Kind& kind) {
    Counts c;
    c.requests = 1;
    for (int lane = 0; lane < kLanes; ++lane) {
        if ((r.mask >> lane & 1) == 0) continue;
        ++c.lanes;
        c.bytes += r.bytes[lane];
    }
    if (!kind.shared) {
        std::tie(c.passes, c.least) = sectors(r);
        return c;
    }
    const int at_once = kind.width <= 4 ? kLanes : kind.width == 8 ? kLanes / 2 : kLanes / 4;
    for (int lane = 0; lane < kLanes; lane += at_once) c.passes += wavefronts(r, lane, lane + at_once);
    c.least = divided(c.bytes, kBanks * kBankBytes);
    return c;
}

// A warp's requests of one kind since its lanes met.
struct Pending {
    uint32_t seen[kLanes] = {};
    std::vector<Request> requests;
};

struct Profile {
    std::string file, kernel;
    Dim3 grid, block;
    size_t shared_bytes = 0;
    uint64_t barriers = 0;
    std::map<std::string, uint64_t> mma;
    std::vector<Kind> kinds;
    std::vector<Counts> counts;                           // of every kind
    std::vector<std::vector<Pending>> warps;              // [warp][kind]
    std::vector<std::vector<size_t>> kinds_of_hash{256};  // so that a kind is found fast

    size_t index_of(const Kind& kind) {
        auto& some = kinds_of_hash[static_cast<size_t>(kind.line * 7 + kind.width) % kinds_of_hash.size()];
        for (const size_t i : some) {
            if (kinds[i] == kind) return i;
        }
        some.push_back(kinds.size());
        kinds.push_back(kind);
        counts.emplace_back();
        return kinds.size() - 1;
    }

    void met(size_t warp) {
        auto& of_kinds = warps[warp];
        for (size_t i = 0; i < of_kinds.size(); ++i) {
            Pending& pending = of_kinds[i];
            if (pending.requests.empty()) continue;
            for (const Request& r : pending.requests) counts[i] += counts_of(r, kinds[i]);
            pending.requests.clear();
            std::fill(std::begin(pending.seen), std::end(pending.seen), 0u);
        }
    }
};

std::unique_ptr<Profile> the_profile;

std::string place_of(const Kind& kind) {
    const char* slash = std::strrchr(kind.file, '/');
    return std::string(slash ? slash + 1 : kind.file) + ":" + std::to_string(kind.line);
}

}  // namespace

void count_access(Access access, const void* p, int bytes, int width, bool shared, Site site) {
    Profile& profile = *the_profile;
    const size_t kind = profile.index_of({site.file, site.line, width, access, shared});
    auto& of_kinds = profile.warps[static_cast<size_t>(current->warp)];
    if (of_kinds.size() <= kind) of_kinds.resize(kind + 1);
    Pending& pending = of_kinds[kind];
    const uint32_t n = pending.seen[current->lane]++;
    if (pending.requests.size() <= n) pending.requests.resize(n + 1);
    Request& r = pending.requests[n];
    r.mask |= 1u << current->lane;
    r.at[current->lane] = reinterpret_cast<uintptr_t>(p);
    r.bytes[current->lane] = static_cast<uint8_t>(bytes);
}

void count_mma(const char* shape) {
    ++the_profile->mma[shape];
}

namespace profile {

Counting::Counting(const char* kernel, Dim3 grid, Dim3 block, size_t shared_bytes) {
    const char* file = std::getenv("SLOWFAST_EMULATE_PROFILE");
    if (!file || !*file) return;
    the_profile = std::make_unique<Profile>();
    the_profile->file = file;
    the_profile->kernel = kernel;
    the_profile->grid = grid;
    the_profile->block = block;
    the_profile->shared_bytes = shared_bytes;
    the_profile->warps.resize(static_cast<size_t>(divided(block.count(), kLanes)));
    profiling = true;
}

Counting::~Counting() {
    profiling = false;
    the_profile.reset();
}

void Counting::write() const {
    if (!profiling) return;
    const Profile& p = *the_profile;
    // One line a kind: the same line may have been compiled into several translation units.
    std::map<std::string, Counts> sites;
    for (size_t i = 0; i < p.kinds.size(); ++i) {
        const Kind& k = p.kinds[i];
        sites["\"site\": \"" + place_of(k) + "\", \"access\": \"" +
              kAccessNames[static_cast<size_t>(k.access)] + "\", \"space\": \"" +
              (k.shared ? "shared" : "global") + "\", \"width\": " + std::to_string(k.width)] += p.counts[i];
    }
    const auto three = [](Dim3 d) {
        return "[" + std::to_string(d.x) + ", " + std::to_string(d.y) + ", " + std::to_string(d.z) + "]";
    };
    const auto number = [](const char* name, uint64_t v) {
        return std::string(", \"") + name + "\": " + std::to_string(v);
    };
    std::string line = "{\"kernel\": \"" + p.kernel + "\", \"grid\": " + three(p.grid) +
                       ", \"block\": " + three(p.block) + number("shared_bytes", p.shared_bytes) +
                       number("warps", p.grid.count() * p.warps.size()) + number("barriers", p.barriers) +
                       ", \"mma\": {";
    const char* separator = "";
    for (const auto& [shape, count] : p.mma) {
        line += separator + ("\"" + shape) + "\": " + std::to_string(count);
        separator = ", ";
    }
    line += "}, \"sites\": [";
    separator = "";
    for (const auto& [place, c] : sites) {
        line += separator + ("{" + place) + number("requests", c.requests) + number("lanes", c.lanes) +
                number("bytes", c.bytes) + number("passes", c.passes) + number("least", c.least) + "}";
        separator = ", ";
    }
    line += "]}\n";
    std::FILE* file = std::fopen(p.file.c_str(), "a");
    const bool written = file && std::fputs(line.c_str(), file) >= 0;
    if (!(file && std::fclose(file) == 0 && written)) {
        throw std::runtime_error("SLOWFAST_EMULATE_PROFILE: cannot append to " + p.file);
    }
}

void warp_met(int warp) {
    the_profile->met(static_cast<size_t>(warp));
}

void barrier_opened() {
    ++the_profile->barriers;
}

void block_ended() {
    for (size_t warp = 0; warp < the_profile->warps.size(); ++warp) the_profile->met(warp);
}

}  // namespace profile

}  // namespace slowfast::emulator
