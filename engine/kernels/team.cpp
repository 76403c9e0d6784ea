#include "team.h"

#include <omp.h>
#include <pthread.h>
#include <signal.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>

#include "entry.h"

namespace blora {
namespace {

using Clock = std::chrono::steady_clock;
// Waking a thread takes some 50 us: it is not worth a sleep that is shorter. From step to step the workers yield.
constexpr std::chrono::microseconds SPIN(50), YIELD(1000);

inline void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Returns whether it became ready within the limit.
template <class Ready, class Pause>
bool poll(const Ready& is_ready, std::chrono::microseconds limit, const Pause& pause) {
    const Clock::time_point end = Clock::now() + limit;
    do {
        for (int i = 0; i < 16; ++i, pause())
            if (is_ready()) return true;
    } while (Clock::now() < end);
    return false;
}

// Where one thread waits for what others make ready.
//
// Whoever makes it ready stores that and then loads is_asleep_; the sleeper stores is_asleep_ and then loads what makes
// it ready. All four are sequentially consistent, so at least one of the two sees what the other has stored.
class Bell {
public:
    template <class Ready>
    void wait(const Ready& is_ready) {
        if (poll(is_ready, SPIN, pause) || poll(is_ready, YIELD, std::this_thread::yield)) return;
        std::unique_lock<std::mutex> lock(mutex_);
        is_asleep_.store(true);
        woken_.wait(lock, is_ready);
        is_asleep_.store(false);
    }
    void ring() {
        if (!is_asleep_.load()) return;
        const std::lock_guard<std::mutex> lock(mutex_);
        woken_.notify_one();
    }

private:
    std::atomic<bool> is_asleep_{false};
    std::mutex mutex_;
    std::condition_variable woken_;
};

// The pieces that nobody has begun of a member's share of a job: the last num_left.
struct Ticket {
    uint32_t job;
    int32_t num_left;
};
static_assert(std::atomic<Ticket>::is_always_lock_free);

// Member 0 is the leader.
struct alignas(128) Member {  // two cache lines, which processors fetch together
    std::atomic<Ticket> ticket{Ticket{0, 0}};
    Bell bell;
    std::thread thread;
};

class Team {
public:
    explicit Team(int size) : members_(new Member[size]) {
        sigset_t all, before;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);  // a signal belongs to a thread that runs Python
        while (size_ < size && start(size_)) ++size_;
        pthread_sigmask(SIG_SETMASK, &before, nullptr);
    }

    ~Team() {
        is_over_.store(true);
        num_pieces_.store(0);
        publish(size_);
        for (int member = 1; member < size_; ++member) members_[member].thread.join();
    }

    void share(int num_pieces, void (*run)(const void*, int), const void* work) {
        run_.store(run, std::memory_order_relaxed);
        work_.store(work, std::memory_order_relaxed);
        num_pieces_.store(num_pieces, std::memory_order_relaxed);
        num_done_.store(0, std::memory_order_relaxed);
        publish(std::min(size_, num_pieces));
        help(0, job_);
        leader_.wait([&] { return num_done_.load() == num_pieces; });
    }

private:
    // Returns false where the system has no room for another thread; the team does without it.
    bool start(int member) {
        try {
            members_[member].thread = std::thread([this, member] { work(member); });
        } catch (const std::system_error&) {
            return false;
        }
        return true;
    }

    // Everything that the leader has written so far is seen by whoever takes a ticket, and what the members write in
    // their pieces by whoever sees num_done_ reach the number of pieces.
    void publish(int num_members) {
        num_members_.store(num_members, std::memory_order_relaxed);
        ++job_;
        for (int member = 0; member < num_members; ++member)
            members_[member].ticket.store({job_, end_of(member) - end_of(member - 1)});
        for (int member = 1; member < num_members; ++member) members_[member].bell.ring();
    }

    void work(int self) {
        for (uint32_t job = 0;;) {
            const uint32_t last = job;
            members_[self].bell.wait([&] { return (job = members_[self].ticket.load().job) != last; });
            if (is_over_.load()) return;
            help(self, job);
        }
    }

    // Takes pieces of a job until none is left.
    void help(int self, uint32_t job) {
        const int num_members = num_members_.load(std::memory_order_relaxed);
        int num_done = 0;
        for (int i = 0; i < num_members; ++i) num_done += take_from((self + i) % num_members, job);
        if (!num_done) return;
        num_done_.fetch_add(num_done);
        if (self) leader_.ring();
    }

    // Returns the number of pieces that it took, and has computed, from a member's share of a job.
    //
    // The job may be over, and the next one be under way: then what is read here may be of either, but the exchange
    // fails. If it succeeds, the job is not over and cannot have changed, because this piece is not done.
    int take_from(int member, uint32_t job) {
        std::atomic<Ticket>& ticket = members_[member].ticket;
        int num_taken = 0;
        for (Ticket seen = ticket.load(); seen.job == job && seen.num_left;) {
            const auto run = run_.load(std::memory_order_relaxed);
            const void* work = work_.load(std::memory_order_relaxed);
            const int piece = end_of(member) - seen.num_left;
            const Ticket rest = {job, seen.num_left - 1};
            if (!ticket.compare_exchange_weak(seen, rest)) continue;
            run(work, piece);
            ++num_taken;
            seen = rest;
        }
        return num_taken;
    }

    // One past the last piece of a member's share.
    int end_of(int member) const {
        const int64_t num_pieces = num_pieces_.load(std::memory_order_relaxed);
        return (int)(num_pieces * (member + 1) / num_members_.load(std::memory_order_relaxed));
    }

    const std::unique_ptr<Member[]> members_;
    int size_ = 1;
    uint32_t job_ = 0;
    std::atomic<bool> is_over_{false};
    // The job. Its members are the first num_members_.
    std::atomic<void (*)(const void*, int)> run_{nullptr};
    std::atomic<const void*> work_{nullptr};
    std::atomic<int> num_pieces_{0}, num_members_{1};
    alignas(128) std::atomic<int> num_done_{0};
    Bell leader_;
};

int num_wanted = 1;
Team* team;  // null until it is needed. Never destroyed at exit, where its threads may still run

// Threads do not survive a fork: the child starts its own, and leaves the memory of its parent's as it is.
void forget_team() { team = nullptr; }

Team& the_team() {
    static const int registered = pthread_atfork(nullptr, nullptr, forget_team);
    (void)registered;
    if (!team) team = new Team(num_wanted);
    return *team;
}

}  // namespace

int num_threads() { return num_wanted; }

void share_pieces(int num_pieces, void (*run)(const void*, int), const void* work) {
    the_team().share(num_pieces, run, work);
}

}  // namespace blora

extern "C" {

void blora_set_num_threads(int32_t number) {
    if (number == blora::num_wanted) return;
    delete blora::team;
    blora::team = nullptr;
    blora::num_wanted = number;
}

int32_t blora_set_openmp_threads(int32_t number) {
    const int before = omp_get_max_threads();
    omp_set_num_threads(number);
    return before;
}
}
