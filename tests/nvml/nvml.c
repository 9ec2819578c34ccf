/* A small libnvidia-ml.so.1 for machines without a GPU: what the real bindings ask for, and no more.
 *
 * NVML_CARDS lists the cards, separated by blanks: UUID@BUS, then, where wanted,
 *   !N             the card has error N: nobody gets a handle of it
 *   ?N             there is a handle, but whatever is asked of it fails with error N
 *   #MIG-a/MIG-b   MIG is enabled, with these instances; an empty name is a place without one
 * A UUID of "-" is a card that tells none. NVML_INIT is the error with which nothing begins.
 * NVML_NAME is what every card is called; without it none tells. Where it is empty, a question for it
 * is never answered.
 * NVML_CORES is the word of cores next to every card.
 * NVML_BUSY is how busy every card is, in percent; MIG instances do not tell. NVML_MEMORY is how many
 * bytes of each are taken, and how many it has: USED/ALL. Where NVML_HANGS is set, a question for these
 * is never answered.
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    SUCCESS = 0,
    INVALID_ARGUMENT = 2,
    NOT_SUPPORTED = 3,
    NOT_FOUND = 6,
};

enum { CARDS = 16, PLACES = 7, NAME = 96 };

typedef struct card {
    char uuid[NAME];
    unsigned bus;
    int handle_error;
    int error;
    int is_mig;
    /* Of a card: its instances. An instance has none, but knows its card. */
    struct card *parent;
    unsigned places;
    struct card *instances;
} card;

typedef struct {
    char legacy[16];
    unsigned domain, bus, device, id, subsystem;
    char bus_id[32];
} pci_info;

static card cards[CARDS];
static card instances[CARDS][PLACES];
static unsigned count;

static void read_instances(card *one, card *into, char *text) {
    char *entry;
    one->is_mig = 1;
    one->instances = into;
    while ((entry = strsep(&text, "/")) != NULL && one->places < PLACES) {
        card *instance = &into[one->places++];
        snprintf(instance->uuid, NAME, "%s", entry);
        instance->parent = one;
    }
}

static void read_card(card *one, card *into, char *text) {
    char *mig = strchr(text, '#');
    char *lost = strchr(text, '!');
    char *sick = strchr(text, '?');
    char *bus = strchr(text, '@');
    if (mig != NULL) {
        *mig = 0;
        read_instances(one, into, mig + 1);
    }
    if (lost != NULL) {
        *lost = 0;
        one->handle_error = atoi(lost + 1);
    }
    if (sick != NULL) {
        *sick = 0;
        one->error = atoi(sick + 1);
    }
    if (bus != NULL) {
        *bus = 0;
        one->bus = (unsigned)atoi(bus + 1);
    }
    snprintf(one->uuid, NAME, "%s", text);
}

int nvmlInitWithFlags(unsigned flags) {
    const char *error = getenv("NVML_INIT");
    const char *given = getenv("NVML_CARDS");
    char *text, *entry;
    (void)flags;
    if (error != NULL) return atoi(error);
    if (count > 0 || given == NULL) return SUCCESS;
    text = strdup(given);
    while ((entry = strsep(&text, " ")) != NULL && count < CARDS) {
        if (*entry == 0) continue;
        read_card(&cards[count], instances[count], entry);
        count++;
    }
    return SUCCESS;
}

int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }

int nvmlShutdown(void) { return SUCCESS; }

int nvmlDeviceGetCount_v2(unsigned *into) {
    *into = count;
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, card **into) {
    if (index >= count) return INVALID_ARGUMENT;
    *into = &cards[index];
    return cards[index].handle_error;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, card **into) {
    for (unsigned i = 0; i < count; i++) {
        if (strcmp(cards[i].uuid, uuid) == 0) {
            *into = &cards[i];
            return cards[i].handle_error;
        }
        for (unsigned place = 0; place < cards[i].places; place++) {
            if (strcmp(instances[i][place].uuid, uuid) == 0) {
                *into = &instances[i][place];
                return SUCCESS;
            }
        }
    }
    return NOT_FOUND;
}

int nvmlDeviceGetUUID(card *one, char *into, unsigned length) {
    if (one->error) return one->error;
    if (strcmp(one->uuid, "-") == 0) return NOT_SUPPORTED;
    snprintf(into, length, "%s", one->uuid);
    return SUCCESS;
}

int nvmlDeviceGetName(card *one, char *into, unsigned length) {
    const char *name = getenv("NVML_NAME");
    if (one->error) return one->error;
    while (name != NULL && *name == 0) pause();
    if (name == NULL) return NOT_SUPPORTED;
    snprintf(into, length, "%s", name);
    return SUCCESS;
}

int nvmlDeviceGetPciInfo_v3(card *one, pci_info *into) {
    if (one->error) return one->error;
    memset(into, 0, sizeof *into);
    into->bus = one->bus;
    snprintf(into->bus_id, sizeof into->bus_id, "00000000:%02X:00.0", one->bus);
    return SUCCESS;
}

int nvmlDeviceGetCpuAffinity(card *one, unsigned words, unsigned long *into) {
    const char *cores = getenv("NVML_CORES");
    if (one->error) return one->error;
    /* As the real one, it knows only of whole cards. */
    if (cores == NULL || one->parent != NULL) return NOT_SUPPORTED;
    memset(into, 0, words * sizeof *into);
    into[0] = strtoul(cores, NULL, 0);
    return SUCCESS;
}

int nvmlDeviceGetUtilizationRates(card *one, unsigned into[2]) {
    const char *busy = getenv("NVML_BUSY");
    while (getenv("NVML_HANGS") != NULL) pause();
    if (one->error) return one->error;
    if (busy == NULL || one->parent != NULL) return NOT_SUPPORTED;
    into[0] = (unsigned)atoi(busy);
    into[1] = 0;
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo(card *one, unsigned long long into[3]) {
    const char *memory = getenv("NVML_MEMORY");
    char *slash;
    if (one->error) return one->error;
    if (memory == NULL) return NOT_SUPPORTED;
    into[2] = strtoull(memory, &slash, 10);
    into[0] = strtoull(slash + 1, NULL, 10);
    into[1] = into[0] - into[2];
    return SUCCESS;
}

/* A driver from before MIG has none of these. */
#ifndef WITHOUT_MIG

int nvmlDeviceGetMigMode(card *one, unsigned *now, unsigned *pending) {
    if (one->error) return one->error;
    *now = *pending = (unsigned)one->is_mig;
    return SUCCESS;
}

int nvmlDeviceGetMaxMigDeviceCount(card *one, unsigned *into) {
    *into = one->places;
    return SUCCESS;
}

int nvmlDeviceGetMigDeviceHandleByIndex(card *one, unsigned place, card **into) {
    if (place >= one->places || one->instances[place].uuid[0] == 0) return NOT_FOUND;
    *into = &one->instances[place];
    return SUCCESS;
}

int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(card *one, card **into) {
    if (one->parent == NULL) return INVALID_ARGUMENT;
    *into = one->parent;
    return SUCCESS;
}

#endif
