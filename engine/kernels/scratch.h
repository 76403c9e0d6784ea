// Memory that a thread keeps between calls. It grows to the needs of the largest step and is never released.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <new>

namespace blora {

class Scratch {
public:
    // Room for at least `count` values, aligned to a cache line. Earlier contents are lost.
    template <class T>
    T* get(size_t count) {
        size_t bytes = (count * sizeof(T) + 63) / 64 * 64;
        if (bytes > bytes_) {
            std::free(memory_);
            bytes_ = 0;
            memory_ = std::aligned_alloc(64, bytes);
            if (!memory_) throw std::bad_alloc();
            bytes_ = bytes;
        }
        return (T*)memory_;
    }
    ~Scratch() { std::free(memory_); }

private:
    void* memory_ = nullptr;
    size_t bytes_ = 0;
};

}  // namespace blora
