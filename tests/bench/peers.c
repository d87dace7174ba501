// SPDX-License-Identifier: Apache-2.0
#include "peers.h"

#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

// In the child. The mapping's descriptor stays open under its number.
static _Noreturn void become(const char *command, const struct tensors *tensors, int orders, int replies) {
    char line[512];
    const int length =
        snprintf(line, sizeof line, "exec %s %d %zu %zu", command, tensors->fd, tensors->room, tensors->channels);
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (length > 0 && (size_t)length < sizeof line && dup2(orders, STDIN_FILENO) >= 0 &&
        dup2(replies, STDOUT_FILENO) >= 0) {
        execl("/bin/sh", "sh", "-c", line, (char *)NULL);
    }
    _exit(127);
}

static bool spawn(struct peer *peer, const char *command, const struct tensors *tensors) {
    int orders[2], replies[2];
    if (pipe2(orders, O_CLOEXEC) != 0 || pipe2(replies, O_CLOEXEC) != 0) return false;
    fflush(stdout);
    peer->pid = fork();
    if (peer->pid < 0) return false;
    if (peer->pid == 0) become(command, tensors, orders[0], replies[1]);
    close(orders[0]);
    close(replies[1]);
    peer->orders = fdopen(orders[1], "w");
    peer->replies = fdopen(replies[0], "r");
    return peer->orders != NULL && peer->replies != NULL;
}

static bool receive(struct peer *peer, char *line, int room) {
    if (fgets(line, room, peer->replies) == NULL) return false;
    line[strcspn(line, "\n")] = '\0';
    return true;
}

bool peer_start(struct peer *peer, const char *name, const char *command, const struct tensors *tensors) {
    char line[128];
    *peer = (struct peer){.name = name};
    if (!spawn(peer, command, tensors)) return false;
    if (receive(peer, line, sizeof line) && strncmp(line, "ready ", 6) == 0 &&
        clock_getcpuclockid(peer->pid, &peer->clock) == 0) {
        snprintf(peer->version, sizeof peer->version, "%.60s", line + 6);
        return true;
    }
    peer_stop(peer);
    return false;
}

void peer_stop(struct peer *peer) {
    if (peer->name == NULL) return;
    if (peer->orders != NULL) fclose(peer->orders);
    if (peer->replies != NULL) fclose(peer->replies);
    if (peer->pid > 0) waitpid(peer->pid, NULL, 0);
    *peer = (struct peer){0};
}

enum peer_answer peer_prepare(struct peer *peer, const struct row *row) {
    const size_t *const d = row->dims;
    fprintf(peer->orders, "prepare %s %s %s %u %zu %zu %zu %zu\n", call_name(row->call),
            row->layout == LAYOUT_FIRST ? "first" : "last", dtype_name(row->dtype), row->threads, d[0], d[1],
            row->rank > 2 ? d[2] : 1, row->rank > 3 ? d[3] : 1);
    char line[256];
    if (fflush(peer->orders) != 0 || !receive(peer, line, sizeof line)) return PEER_BROKEN;
    return strcmp(line, "ok") == 0 ? PEER_OK : strncmp(line, "no ", 3) == 0 ? PEER_CANNOT : PEER_BROKEN;
}

double peer_time(struct peer *peer, unsigned long reps) {
    char line[64];
    fprintf(peer->orders, "run %lu\n", reps);
    if (fflush(peer->orders) != 0 || !receive(peer, line, sizeof line)) return -1;
    char *end;
    const double ns = strtod(line, &end);
    return end != line && *end == '\0' ? ns : -1;
}
