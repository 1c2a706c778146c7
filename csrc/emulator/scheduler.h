// Which of the threads that can run is next (SLOWFAST_EMULATE_ORDER).
#pragma once

#include <cstdlib>

#include "emulator/text.h"

namespace slowfast::emulator {

constexpr int kWarp = 32, kMaxThreads = 1024, kMaxWarps = kMaxThreads / kWarp;

struct Order {
    enum Kind { random, reversed, ahead, mixed } kind = mixed;
    uint64_t number = 0;  // seed, or the warp that goes ahead

    static Order from_environment() {
        const char* text = std::getenv("SLOWFAST_EMULATE_ORDER");
        if (!text || !*text) return {};
        const std::string all = text, name = all.substr(0, all.find(':'));
        const char* const names[] = {"random", "reversed", "ahead", "mixed"};
        Order order;
        for (int kind = 0; kind < 4; ++kind) {
            if (name != names[kind]) continue;
            order.kind = static_cast<Kind>(kind);
            if (name.size() < all.size()) order.number = std::strtoull(text + name.size() + 1, nullptr, 10);
            return order;
        }
        throw std::runtime_error(
            "SLOWFAST_EMULATE_ORDER: expected random[:seed], reversed, ahead[:warp] or mixed, got " + all);
    }

    // For one block of the grid: mixed takes turns.
    Order of_block(uint64_t block) const {
        Order order = *this;
        if (kind == mixed) {
            order.kind = static_cast<Kind>(block % 3);
            order.number = block / 3;
        } else if (kind == random) {
            order.number += block * 0x9e3779b97f4a7c15u;
        }
        return order;
    }

    std::string name() const {
        return kind == reversed ? "reversed"
                                : text_of("%s:%llu", kind == random ? "random" : "ahead",
                                          static_cast<unsigned long long>(number));
    }
};

// First set bit from `start` on, around the end.
inline int bit_from(uint32_t mask, unsigned start) {
    const uint32_t rotated = mask >> start | (start ? mask << (32 - start) : 0);
    return static_cast<int>((static_cast<unsigned>(__builtin_ctz(rotated)) + start) % 32);
}
inline int last_bit(uint32_t mask) {
    return 31 - __builtin_clz(mask);
}

// Threads by warp: which can run, which wait.
struct ThreadSet {
    uint32_t warps = 0, lanes[kMaxWarps] = {};

    void add(int warp, uint32_t mask) {
        lanes[warp] |= mask;
        warps |= 1u << warp;
    }
    void remove(int warp, int lane) {
        lanes[warp] &= ~(1u << lane);
        if (!lanes[warp]) warps &= ~(1u << warp);
    }
    void add_all(ThreadSet& from) {
        for (uint32_t left = from.warps; left; left &= left - 1) {
            const int warp = __builtin_ctz(left);
            add(warp, from.lanes[warp]);
            from.lanes[warp] = 0;
        }
        from.warps = 0;
    }
};

class Scheduler {
  public:
    void start(Order order) {
        order_ = order;
        random_ = order.number * 0x9e3779b97f4a7c15u + 0x2545f4914f6cdd1du;
        ready = {};
    }
    ThreadSet ready;

    // Linear index of the thread to run now, no longer ready; -1 when none is.
    int pick() {
        if (!ready.warps) return -1;
        int warp, lane;
        if (order_.kind == Order::reversed) {
            warp = last_bit(ready.warps);
            lane = last_bit(ready.lanes[warp]);
        } else if (order_.kind == Order::ahead) {
            warp = bit_from(ready.warps, order_.number % kMaxWarps);
            lane = __builtin_ctz(ready.lanes[warp]);
        } else {
            random_ ^= random_ << 13;
            random_ ^= random_ >> 7;
            random_ ^= random_ << 17;
            warp = bit_from(ready.warps, random_ >> 20 & 31);
            lane = bit_from(ready.lanes[warp], random_ >> 40 & 31);
        }
        ready.remove(warp, lane);
        return warp * kWarp + lane;
    }

  private:
    Order order_;
    uint64_t random_ = 1;
};

}  // namespace slowfast::emulator
