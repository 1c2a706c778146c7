// The emulator's messages.
#pragma once

#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <stdexcept>
#include <string>

#include "emulator/emulator.h"

namespace slowfast::emulator {

struct Error : std::runtime_error {
    using std::runtime_error::runtime_error;
};

inline std::string format_text(const char* format, va_list arguments) {
    char text[1024];
    std::vsnprintf(text, sizeof(text), format, arguments);
    return text;
}
std::string text_of(const char* format, ...) __attribute__((format(printf, 1, 2)));
inline std::string text_of(const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    std::string text = format_text(format, arguments);
    va_end(arguments);
    return text;
}
inline std::string text_of(Site site) {
    const char* slash = std::strrchr(site.file, '/');
    return text_of("%s:%d", slash ? slash + 1 : site.file, site.line);
}
inline bool same(Site a, Site b) {
    return a.line == b.line && std::strcmp(a.file, b.file) == 0;
}

}  // namespace slowfast::emulator
