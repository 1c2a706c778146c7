// Launches: their limits, blocks one after another, threads in turn.

#include "emulator/launch.h"

#include <mutex>

#include "emulator/profile.h"

namespace slowfast::emulator {

Thread* current = nullptr;
Dim3 grid_dim, block_dim;
int block_index[3];

std::string Launch::where() const {
    return text_of("%s, block (%d, %d, %d), order %s", kernel_.c_str(), block_index[0], block_index[1],
                   block_index[2], order_.name().c_str());
}

void Launch::check_limits() const {
    const auto expect = [&](bool good, const char* limit, uint64_t got) {
        if (!good) {
            throw std::runtime_error(text_of("CUDA emulator: %s: expected %s, got %llu", kernel_.c_str(),
                                             limit, static_cast<unsigned long long>(got)));
        }
    };
    expect(grid_.x <= 0x7fffffffu, "at most 2147483647 blocks along x", grid_.x);
    expect(grid_.y <= 65535, "at most 65535 blocks along y", grid_.y);
    expect(grid_.z <= 65535, "at most 65535 blocks along z", grid_.z);
    expect(block_.count() >= 1 && block_.count() <= kMaxThreads, "1 to 1024 threads a block", block_.count());
    expect(block_.z <= 64, "at most 64 threads along z", block_.z);
    expect(shared_bytes_ <= kMaxShared, "at most 232448 bytes of shared memory", shared_bytes_);
}

void Launch::run(const char* kernel, Dim3 grid, Dim3 block, size_t shared_bytes, void (*body)(void*),
                 void* closure) {
    kernel_ = kernel;
    if (kernel_.front() == '(' && kernel_.back() == ')') kernel_ = kernel_.substr(1, kernel_.size() - 2);
    grid_ = grid_dim = grid;
    block_ = block_dim = block;
    shared_bytes_ = shared_bytes;
    body_ = body;
    closure_ = closure;
    if (grid.count() == 0) return;
    check_limits();
    const Order asked = Order::from_environment();

    count_ = static_cast<int>(block.count());
    while (threads_.size() < static_cast<size_t>(count_)) {
        threads_.push_back(std::make_unique<EmulatedThread>());
    }
    for (int i = 0; i < count_; ++i) {
        EmulatedThread& t = *threads_[static_cast<size_t>(i)];
        t.id = i;
        t.lane = i % kWarp;
        t.warp = i / kWarp;
        t.x = i % static_cast<int>(block.x);
        t.y = i / static_cast<int>(block.x) % static_cast<int>(block.y);
        t.z = i / static_cast<int>(block.x * block.y);
    }
    const profile::Counting counting(kernel_.c_str(), grid, block, shared_bytes);
    arrays_.clear();
    arrays_.push_back(std::make_unique<SharedArray>(nullptr, shared_bytes, "dynamic_shared"));
    for (uint64_t i = 0; i < grid.count(); ++i) {
        order_ = asked.of_block(i);
        run_block(i);
        if (profiling) profile::block_ended();
    }
    counting.write();
}

void Launch::run_block(uint64_t index) {
    block_index[0] = static_cast<int>(index % grid_.x);
    block_index[1] = static_cast<int>(index / grid_.x % grid_.y);
    block_index[2] = static_cast<int>(index / grid_.x / grid_.y);
    for (auto& array : arrays_) array->reset();
    for (int warp = 0; warp < cuda::ceil_div(count_, kWarp); ++warp) {
        meetings_[warp].open = 0;
    }
    for (Barrier& b : barriers_) b = {};
    scheduler_.start(order_);
    done_ = 0;
    error_.clear();
    for (int i = 0; i < count_; ++i) {
        EmulatedThread& t = *threads_[static_cast<size_t>(i)];
        t.done = false;
        t.waits_at = nullptr;
        t.copies.clear();
        t.landed = 0;
        t.groups = 0;
        t.fiber.prepare(thread_entry);
        scheduler_.ready.add(t.warp, 1u << t.lane);
    }
    EmulatedThread& first = *threads_[static_cast<size_t>(scheduler_.pick())];
    current = &first;
    host_.switch_to(first.fiber);
    current = nullptr;
    try {
        if (!error_.empty()) throw Error(error_);
        for (auto& array : arrays_) array->check_guards();
    } catch (const Error& error) {
        throw std::runtime_error("CUDA emulator: " + where() + ": " + error.what());
    }
}

void Launch::thread_entry() {
    Launch& launch = the_launch();
    Fiber::entered(launch.host_);
    EmulatedThread& self = launch.self();
    try {
        launch.body_(launch.closure_);
    } catch (const std::exception& error) {
        launch.error_ = text_of("thread %d: ", self.id) + error.what();
    } catch (...) {
        launch.error_ = text_of("thread %d: an exception that is not a std::exception", self.id);
    }
    // Outside the handler, which would otherwise never end. What the other threads were doing is dropped.
    if (!launch.error_.empty()) self.fiber.switch_to(launch.host_);
    self.done = true;
    ++launch.done_;
    launch.run_next(self);  // never comes back
}

void Launch::run_next(EmulatedThread& leaving) {
    const int next = scheduler_.pick();
    if (next < 0) {
        if (done_ < count_) error_ = "deadlock: " + who_waits_where();
        leaving.fiber.switch_to(host_);
        return;
    }
    EmulatedThread& other = *threads_[static_cast<size_t>(next)];
    if (&other == &leaving) return;
    current = &other;
    leaving.fiber.switch_to(other.fiber);
}

void run(const char* kernel, Dim3 grid, Dim3 block, size_t shared_bytes, void (*body)(void*), void* closure) {
    static std::mutex mutex;
    const std::lock_guard<std::mutex> lock(mutex);
    the_launch().run(kernel, grid, block, shared_bytes, body, closure);
}

void fail(const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    std::string text = format_text(format, arguments);
    va_end(arguments);
    throw Error(text);
}

void fail_at(const char* what, Site site, const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    std::string text = format_text(format, arguments);
    va_end(arguments);
    throw Error(text_of("%s (%s): ", what, text_of(site).c_str()) + text);
}

}  // namespace slowfast::emulator
