// Shared memory and asynchronous copies.

#include "emulator/launch.h"
#include "emulator/profile.h"

namespace slowfast::emulator {

void* Launch::static_shared(const void* key, size_t bytes, const char* name) {
    size_t all = bytes;
    for (size_t i = 1; i < arrays_.size(); ++i) {
        if (arrays_[i]->key() == key) return arrays_[i]->data();
        all += arrays_[i]->bytes();
    }
    if (all > kMaxStatic)
        fail("expected at most %zu bytes of static shared memory, got %zu", kMaxStatic, all);
    if (all + shared_bytes_ > kMaxShared) {
        fail("expected at most %zu bytes of shared memory, got %zu", kMaxShared, all + shared_bytes_);
    }
    arrays_.push_back(std::make_unique<SharedArray>(key, bytes, name));
    return arrays_.back()->data();
}

void Launch::check_shared(const void* p, size_t bytes, size_t alignment, const char* what, Site site) {
    check_aligned(p, alignment, what, site);
    const char* address = static_cast<const char*>(p);
    const SharedArray* nearest = nullptr;
    ptrdiff_t least = 0;
    for (const auto& array : arrays_) {
        if (array->contains(address, bytes)) return;
        const ptrdiff_t from = address - array->data();
        const ptrdiff_t away = from < 0 ? -from : from;
        if (!nearest || away < least) {
            nearest = array.get();
            least = away;
        }
    }
    fail_at(what, site, "%zu bytes from byte %td of the shared array %s, which has %zu bytes", bytes,
            address - nearest->data(), nearest->name(), nearest->bytes());
}

bool Launch::in_shared(const void* p) const {
    const char* address = static_cast<const char*>(p);
    return std::any_of(arrays_.begin(), arrays_.end(), [=](auto& a) { return a->contains(address, 1); });
}

void* dynamic_shared() {
    return the_launch().dynamic_shared();
}

void* static_shared(const void* key, size_t bytes, const char* name) {
    return the_launch().static_shared(key, bytes, name);
}

void check_shared(const void* p, size_t bytes, size_t alignment, const char* what, Site site) {
    the_launch().check_shared(p, bytes, alignment, what, site);
}

bool in_shared(const void* p) {
    return the_launch().in_shared(p);
}

void check_aligned(const void* p, size_t alignment, const char* what, Site site) {
    if (reinterpret_cast<uintptr_t>(p) % alignment != 0) {
        fail_at(what, site, "expected an address that is a multiple of %zu, got %p", alignment, p);
    }
}

void copy_async(void* shared, const void* global, int size, int bytes, Site site) {
    check_shared(shared, static_cast<size_t>(size), static_cast<size_t>(size), "cp_async", site);
    if (bytes < 0 || bytes > size) {
        fail_at("cp_async", site, "expected 0 to %d bytes, got %d", size, bytes);
    }
    if (bytes > 0) check_aligned(global, static_cast<size_t>(size), "cp_async", site);
    if (__builtin_expect(profiling, false)) {
        count_access(Access::copy, shared, size, size, true, site);
        if (bytes > 0) count_access(Access::copy, global, bytes, size, false, site);
    }
    EmulatedThread& t = the_launch().self();
    t.copies.push_back({shared, global, size, bytes, t.groups});
    std::memset(shared, kPoison, static_cast<size_t>(size));
}

void copy_commit() {
    ++the_launch().self().groups;
}

void copy_wait(int groups) {
    EmulatedThread& t = the_launch().self();
    for (; t.landed < t.copies.size() && t.copies[t.landed].group < t.groups - groups; ++t.landed) {
        const Copy& c = t.copies[t.landed];
        if (c.bytes) std::memcpy(c.shared, c.global, static_cast<size_t>(c.bytes));
        std::memset(static_cast<char*>(c.shared) + c.bytes, 0, static_cast<size_t>(c.size - c.bytes));
    }
    if (t.landed == t.copies.size()) {
        t.copies.clear();
        t.landed = 0;
    }
}

}  // namespace slowfast::emulator
