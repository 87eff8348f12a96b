/* The limit: a level-triggered epoll loop in C on one thread, with nothing around it.
 *
 *     epoll_server echo | flow
 *
 * Prints `listening PORT` and serves until it is killed. `flow` is told in README.md. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

/* The same as the other servers of this benchmark. */
enum { BACKLOG = 1024, READ_BYTES = 120 * 1024, BLOCK_BYTES = 256 * 1024, MAX_EVENTS = 1024 };

enum mode { NEW, ECHO, UPLOAD, DOWNLOAD };

struct peer {
    int fd;
    enum mode mode;
    bool waits_for_room;
    /* Echo: what the kernel has not taken yet. */
    char *unsent;
    size_t unsent_bytes;
    /* Flow: bytes that came, or that went. */
    uint64_t bytes;
};

static enum mode first_mode;
static int epoll;
static char buffer[READ_BYTES];
static char block[BLOCK_BYTES];

static void die(const char *what) {
    perror(what);
    exit(1);
}

static bool would_block(void) {
    return errno == EAGAIN || errno == EINTR;
}

/* With something unsent nothing more is read: the peer has to take it first. */
static bool watch_for_room(struct peer *peer, bool room) {
    if (peer->waits_for_room == room)
        return true;
    peer->waits_for_room = room;
    struct epoll_event event = {.events = room ? EPOLLOUT : EPOLLIN, .data.ptr = peer};
    return epoll_ctl(epoll, EPOLL_CTL_MOD, peer->fd, &event) == 0;
}

/* The functions below say false when the connection is over: the end of the stream, or an error. */

static bool keep(struct peer *peer, const char *bytes, size_t length) {
    char *unsent = malloc(length);
    if (unsent == NULL)
        return false;
    memcpy(unsent, bytes, length);
    free(peer->unsent);
    peer->unsent = unsent;
    peer->unsent_bytes = length;
    return watch_for_room(peer, true);
}

static bool send_rest(struct peer *peer) {
    ssize_t sent = send(peer->fd, peer->unsent, peer->unsent_bytes, MSG_NOSIGNAL);
    if (sent < 0)
        return would_block();
    if ((size_t)sent < peer->unsent_bytes)
        return keep(peer, peer->unsent + sent, peer->unsent_bytes - (size_t)sent);
    free(peer->unsent);
    peer->unsent = NULL;
    peer->unsent_bytes = 0;
    return watch_for_room(peer, false);
}

static bool echo(struct peer *peer, size_t length) {
    ssize_t sent = send(peer->fd, buffer, length, MSG_NOSIGNAL);
    if (sent < 0 && !would_block())
        return false;
    size_t taken = sent < 0 ? 0 : (size_t)sent;
    return taken == length || keep(peer, buffer + taken, length - taken);
}

static bool download(struct peer *peer) {
    size_t at = peer->bytes % BLOCK_BYTES;
    ssize_t sent = send(peer->fd, block + at, BLOCK_BYTES - at, MSG_NOSIGNAL);
    if (sent < 0)
        return would_block();
    peer->bytes += (uint64_t)sent;
    return watch_for_room(peer, true);
}

/* The end of an upload: says how much it was. */
static void tell(struct peer *peer) {
    char told[8];
    for (int index = 0; index < 8; index++)
        told[index] = (char)(peer->bytes >> (56 - 8 * index));
    if (send(peer->fd, told, sizeof told, MSG_NOSIGNAL) < 0)
        perror("send");
}

static bool came(struct peer *peer, size_t length) {
    if (peer->mode == NEW)
        peer->mode = buffer[0] == 'D' ? DOWNLOAD : UPLOAD;
    switch (peer->mode) {
    case ECHO:
        return echo(peer, length);
    case DOWNLOAD:
        return download(peer);
    default:
        peer->bytes += length;
        return true;
    }
}

static bool turn(struct peer *peer) {
    if (peer->waits_for_room)
        return peer->mode == DOWNLOAD ? download(peer) : send_rest(peer);
    ssize_t got = recv(peer->fd, buffer, sizeof buffer, 0);
    if (got > 0)
        return came(peer, (size_t)got);
    if (got < 0)
        return would_block();
    if (peer->mode == UPLOAD)
        tell(peer);
    return false;
}

static void take(int listener) {
    int fd;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        int on = 1;
        struct peer *peer = calloc(1, sizeof *peer);
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = peer};
        if (peer == NULL || setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) < 0 ||
            epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) < 0)
            die("a new connection");
        peer->fd = fd;
        peer->mode = first_mode;
    }
    if (!would_block() && errno != ECONNABORTED)
        die("accept");
}

static int listen_somewhere(void) {
    int on = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (listener < 0 || setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) < 0 ||
        bind(listener, (struct sockaddr *)&address, sizeof address) < 0 ||
        listen(listener, BACKLOG) < 0 ||
        getsockname(listener, (struct sockaddr *)&address, &length) < 0)
        die("listen");
    printf("listening %d\n", ntohs(address.sin_port));
    fflush(stdout);
    return listener;
}

int main(int count, char **words) {
    if (count != 2 || (strcmp(words[1], "echo") != 0 && strcmp(words[1], "flow") != 0)) {
        fprintf(stderr, "usage: epoll_server echo | flow\n");
        return 2;
    }
    first_mode = strcmp(words[1], "echo") == 0 ? ECHO : NEW;
    for (size_t at = 0; at < BLOCK_BYTES; at++)
        block[at] = (char)at;
    epoll = epoll_create1(EPOLL_CLOEXEC);
    int listener = listen_somewhere();
    /* No peer has this address. */
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = &event};
    if (epoll < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event) < 0)
        die("epoll");
    static struct epoll_event events[MAX_EVENTS];
    for (;;) {
        int ready = epoll_wait(epoll, events, MAX_EVENTS, -1);
        if (ready < 0 && errno != EINTR)
            die("epoll_wait");
        for (int index = 0; index < ready; index++) {
            struct peer *peer = events[index].data.ptr;
            if (events[index].data.ptr == &event) {
                take(listener);
            } else if (!turn(peer)) {
                close(peer->fd);
                free(peer->unsent);
                free(peer);
            }
        }
    }
}
