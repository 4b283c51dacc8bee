// Takes libFuzzer's place where the compiler has none: inputs are random, and nothing guides them.
//
// Usage: PROGRAM [-max_total_time=SECONDS] [-seed=N] [-artifact_prefix=PATH] [FILE ...]
//
// An input is written to PATHlast before it runs, and stays there where it fails; files given are run instead.
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

std::string value(int count, char** arguments, const std::string& name, const char* otherwise) {
  for (int i = 1; i < count; i++)
    if (!std::strncmp(arguments[i], name.c_str(), name.size())) return arguments[i] + name.size();
  return otherwise;
}

std::vector<uint8_t> read(const char* path) {
  std::FILE* const file = std::fopen(path, "rb");
  if (!file) std::perror(path), std::exit(2);
  std::vector<uint8_t> bytes;
  for (int byte; (byte = std::fgetc(file)) != EOF;) bytes.push_back(uint8_t(byte));
  std::fclose(file);
  return bytes;
}

void write(const std::string& path, const std::vector<uint8_t>& bytes) {
  std::FILE* const file = std::fopen(path.c_str(), "wb");
  if (!file) std::perror(path.c_str()), std::exit(2);
  std::fwrite(bytes.data(), 1, bytes.size(), file);
  std::fclose(file);
}

}  // namespace

int main(int count, char** arguments) {
  bool has_files = false;
  for (int i = 1; i < count; i++)
    if (arguments[i][0] != '-') {
      const std::vector<uint8_t> bytes = read(arguments[i]);
      LLVMFuzzerTestOneInput(bytes.data(), bytes.size()), has_files = true;
    }
  if (has_files) return 0;
  const double seconds = std::atof(value(count, arguments, "-max_total_time=", "10").c_str());
  const std::string last = value(count, arguments, "-artifact_prefix=", "") + "last";
  std::mt19937_64 numbers(std::strtoull(value(count, arguments, "-seed=", "0").c_str(), nullptr, 10));
  const auto begin = std::chrono::steady_clock::now();
  int64_t runs = 0;
  for (; std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count() < seconds; runs++) {
    std::vector<uint8_t> bytes(40 + numbers() % 200);
    for (uint8_t& byte : bytes) byte = uint8_t(numbers());
    write(last, bytes);
    LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
  }
  std::remove(last.c_str());
  std::fprintf(stderr, "Done %lld runs\n", static_cast<long long>(runs));
}
