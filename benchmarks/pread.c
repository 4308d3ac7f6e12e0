/* The floor: read a file once, one thread, 1 MiB at a time, and do nothing with it. */
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

int main(int argc, char **argv) {
    const size_t size = 1 << 20;
    char *buffer = malloc(size);
    int fd = argc > 1 ? open(argv[1], O_RDONLY) : -1;
    off_t offset = 0;
    ssize_t got;
    if (fd < 0 || !buffer) return 2;
    while ((got = pread(fd, buffer, size, offset)) > 0) offset += got;
    return got < 0 ? 2 : 0;
}
