/* A sensor's slots and models on a computer, for the tests in Python.
 *
 * As a shared library: one sensor with flash in memory, which forgets nothing through sensor_start, can lose its power
 * in the middle of a write, and refuses what real NOR flash does not do. As a program:
 *
 *   sensor images CASES SEED FILE     damaged versions of an image, most with checksums mended: opened, and run if they
 *                                     are taken, in buffers of exactly the size that is said
 *   sensor orders CASES SEED FILE     orders in any sequence, right and wrong: a model that ran goes on running
 */
#include "fedmq_slots.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ROOM = 32768, SENSOR = 3, WORK = 8192 };

static void must(int holds, const char *what)
{
    if (!holds) {
        fprintf(stderr, "%s\n", what);
        abort();
    }
}

static void *get(size_t bytes)
{
    void *got = malloc(bytes > 0 ? bytes : 1);
    must(got != NULL, "out of memory");
    return got;
}

/* --- flash -------------------------------------------------------------------------------------------------------- */

static uint8_t memory[2][ROOM];
static long power = -1; /* bytes that can still be written before it is cut; -1: no cut */

static int erase(void *context, int slot)
{
    (void)context;
    for (uint32_t i = 0; i < ROOM; i++) {
        if (power == 0) {
            return 1;
        }
        memory[slot][i] = 0xFF;
        power -= power > 0;
    }
    return 0;
}

static int write(void *context, int slot, uint32_t at, const uint8_t *bytes, size_t length)
{
    (void)context;
    must(slot == 0 || slot == 1, "no such slot");
    must(at <= ROOM && length <= ROOM - at, "a write beyond the slot");
    for (size_t i = 0; i < length; i++) {
        if (power == 0) {
            return 1;
        }
        must(memory[slot][at + i] == 0xFF, "a byte was written twice without an erase");
        memory[slot][at + i] = bytes[i];
        power -= power > 0;
    }
    return 0;
}

static const fedmq_flash flash = {{memory[0], memory[1]}, ROOM, erase, write, NULL};

/* --- sensor ------------------------------------------------------------------------------------------------------- */

static fedmq_slots slots;
static fedmq_feed feed;
static fedmq_decoder decoder;
static fedmq_head acks, scores;
static int8_t work[WORK];
static uint8_t in[FEDMQ_OVERHEAD + FEDMQ_ORDER_HEAD + 256];

void sensor_format(void);
void sensor_cut_after(long bytes);
void sensor_start(uint32_t rate_mhz, uint32_t sample_scale, uint8_t channels, uint32_t room);
size_t sensor_feed(const uint8_t *bytes, size_t length, uint8_t *out, size_t room);
int sensor_active(void);
uint8_t *sensor_memory(int slot);
int sensor_run(const int16_t *window, int8_t *out, int32_t *score);
size_t sensor_score(uint64_t taken_us, const int16_t *window, uint8_t *out, size_t room);

void sensor_format(void)
{
    memset(memory, 0xFF, sizeof memory);
    power = -1;
}

void sensor_cut_after(long bytes)
{
    power = bytes;
}

void sensor_start(uint32_t rate_mhz, uint32_t sample_scale, uint8_t channels, uint32_t room)
{
    power = -1;
    must(room <= WORK, "less work expected");
    feed.rate_mhz = rate_mhz;
    feed.sample_scale = sample_scale;
    feed.channels = channels;
    acks.sensor = scores.sensor = SENSOR;
    acks.sequence = scores.sequence = 0;
    acks.boot = scores.boot = 7;
    fedmq_decoder_start(&decoder, in, sizeof in);
    fedmq_slots_start(&slots, &flash, &feed, work, room);
}

/* Bytes from the line; the acks to it into |out|. A sensor without power hears and says nothing. */
size_t sensor_feed(const uint8_t *bytes, size_t length, uint8_t *out, size_t room)
{
    size_t said = 0;
    for (size_t i = 0; i < length && power != 0; i++) {
        if (fedmq_decode(&decoder, bytes[i]) == FEDMQ_FRAME && fedmq_slots_take(&slots, &decoder, SENSOR) &&
            power != 0) {
            size_t ack = fedmq_encode_ack(out + said, room - said, &acks, &slots);
            must(ack > 0, "more room for acks expected");
            acks.sequence++;
            said += ack;
        }
    }
    return said;
}

int sensor_active(void)
{
    return slots.model == NULL ? -1 : slots.active;
}

uint8_t *sensor_memory(int slot)
{
    return memory[slot];
}

/* How many outputs there are, or -1: no model is in force. */
int sensor_run(const int16_t *window, int8_t *out, int32_t *score)
{
    const fedmq_model *m = slots.model;
    if (m == NULL) {
        return -1;
    }
    for (uint32_t i = 0; i < m->inputs; i++) {
        work[i] = fedmq_model_input(m, i, window[i]);
    }
    const int8_t *found = fedmq_model_run(m, work);
    memcpy(out, found, m->outputs);
    *score = fedmq_model_score(m, work, found);
    return (int)m->outputs;
}

size_t sensor_score(uint64_t taken_us, const int16_t *window, uint8_t *out, size_t room)
{
    int8_t found[WORK];
    int32_t score;
    must(sensor_run(window, found, &score) > 0, "a model expected");
    size_t length = fedmq_encode_score(out, room, &scores, slots.model, taken_us, found, score);
    scores.sequence++;
    return length;
}

/* --- fuzz --------------------------------------------------------------------------------------------------------- */

static uint64_t state;

static uint32_t draw(uint32_t below)
{
    state ^= state << 13; /* xorshift64: the same everywhere */
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)(state >> 32) % below;
}

static uint8_t *load(const char *path, size_t *length)
{
    FILE *file = fopen(path, "rb");
    uint8_t *bytes = (uint8_t *)get(ROOM);
    must(file != NULL, "an image expected");
    *length = fread(bytes, 1, ROOM, file);
    fclose(file);
    return bytes;
}

static uint32_t u32_at(const uint8_t *bytes)
{
    return bytes[0] | (uint32_t)bytes[1] << 8 | (uint32_t)bytes[2] << 16 | (uint32_t)bytes[3] << 24;
}

static void put_u32(uint8_t *bytes, uint32_t number)
{
    for (int i = 0; i < 4; i++) {
        bytes[i] = (uint8_t)(number >> 8 * i);
    }
}

/* What a hostile or unlucky hand does to an image: numbers at their ends, flipped bits, a part cut out or doubled. */
static size_t damage(uint8_t *bytes, size_t length)
{
    static const uint8_t ends[6] = {0x00, 0x01, 0x7F, 0x80, 0xFE, 0xFF};
    for (uint32_t n = draw(4); n > 0 && length > 0; n--) {
        size_t at = draw(3) == 0 && length >= 80 ? draw(80) : draw((uint32_t)length);
        size_t left = length - at;
        switch (draw(5)) {
        case 0:
            bytes[at] = (uint8_t)(bytes[at] ^ 1u << draw(8));
            break;
        case 1:
            bytes[at] = ends[draw(6)];
            break;
        case 2:
            memset(bytes + at, ends[draw(6)], left < 4 ? left : 4);
            break;
        case 3:
            memset(bytes + at, ends[draw(6)], draw((uint32_t)left + 1));
            break;
        default:
            length = at + draw((uint32_t)left + 1);
        }
    }
    return length;
}

static void images(unsigned long cases, const uint8_t *whole, size_t length)
{
    unsigned long taken = 0, refused[10] = {0};
    for (unsigned long i = 0; i < cases; i++) {
        uint8_t *drawn = (uint8_t *)get(length);
        memcpy(drawn, whole, length);
        size_t now = damage(drawn, length);
        uint8_t *image = (uint8_t *)get(now); /* exactly so large */
        memcpy(image, drawn, now);
        free(drawn);
        if (now >= 16 && draw(16)) {
            put_u32(image + 8, (uint32_t)now);
        }
        if (now >= 4 && draw(16)) {
            put_u32(image + now - 4, fedmq_crc32(image, now - 4));
        }
        fedmq_model m;
        fedmq_model_fault fault = fedmq_model_open(&m, image, now);
        refused[fault]++;
        if (fault == FEDMQ_MODEL_OK) {
            int8_t *buffer = (int8_t *)get(m.work); /* exactly so large */
            taken++;
            must(m.work >= m.inputs + 2 * m.outputs, "too little work");
            (void)fedmq_model_self_test(&m, buffer);
            for (int window = 0; window < 2; window++) {
                for (uint32_t n = 0; n < m.inputs; n++) {
                    int16_t sample = (int16_t)(draw(4) ? (int32_t)draw(65536) - 32768 : draw(2) ? 32767 : -32768);
                    buffer[n] = window ? (int8_t)-128 : fedmq_model_input(&m, n, sample);
                }
                const int8_t *out = fedmq_model_run(&m, buffer);
                must(out >= buffer + m.inputs && out + m.outputs <= buffer + m.work, "outputs elsewhere");
                must(fedmq_model_score(&m, buffer, out) >= 0, "a score below 0");
            }
            free(buffer);
        }
        free(image);
    }
    printf("%lu taken, %lu malformed, %lu checksum\n", taken, refused[FEDMQ_MODEL_MALFORMED],
           refused[FEDMQ_MODEL_CHECKSUM]);
}

/* An order straight to the slots: what the decoder would hand on. */
static void say(uint8_t what, uint32_t id, uint32_t number, const uint8_t *chunk, size_t length, size_t cut)
{
    size_t total = FEDMQ_ORDER_HEAD + length - cut;
    uint8_t *payload = (uint8_t *)get(total);
    uint8_t head[FEDMQ_ORDER_HEAD] = {what};
    fedmq_decoder said;
    memset(&said, 0, sizeof said);
    put_u32(head + 4, id);
    put_u32(head + 8, number);
    for (size_t i = 0; i < total; i++) {
        payload[i] = i < FEDMQ_ORDER_HEAD ? head[i] : chunk[i - FEDMQ_ORDER_HEAD];
    }
    said.kind = FEDMQ_MODEL_CHUNK;
    said.head.sensor = SENSOR;
    said.payload = payload;
    said.length = total;
    must(fedmq_slots_take(&slots, &said, SENSOR) == 1, "an order was not taken for one");
    free(payload);
}

static void orders(unsigned long cases, const uint8_t *whole, size_t length)
{
    unsigned long changes = 0, refused = 0;
    uint8_t *image = (uint8_t *)get(length);
    memcpy(image, whole, length);
    sensor_format();
    sensor_start(u32_at(whole + 24), u32_at(whole + 28), whole[36], WORK);
    for (unsigned long i = 0; i < cases; i++) {
        int before = sensor_active();
        uint32_t id_before = before < 0 ? 0 : slots.model->id;
        if (slots.length == 0 && draw(4) == 0) {
            /* Another version of the image; now and then one that is damaged, with a checksum that holds. */
            memcpy(image, whole, length);
            put_u32(image + 12, draw(1000));
            if (draw(3) == 0) {
                image[draw((uint32_t)length)] ^= 1;
            }
            put_u32(image + length - 4, fedmq_crc32(image, length - 4));
        }
        uint32_t id = draw(50) ? u32_at(image + length - 4) : draw(100);
        uint32_t at = draw(20) ? slots.received : draw(ROOM);
        size_t left = at < length ? length - at : 0, some = left < 256 ? left : 256;
        if (draw(2000) == 0) {
            power = draw(40000);
        }
        uint32_t which = draw(40);
        if (which < 34) {
            say(FEDMQ_CHUNK, id, at, image + (at < length ? at : 0), some, draw(30) ? 0 : draw((uint32_t)some + 1));
        } else if (which < 37) {
            say(FEDMQ_FINISH, id, 0, NULL, 0, draw(20) ? 0 : draw(13));
        } else if (which < 39) {
            say(FEDMQ_BEGIN, id, draw(30) ? (uint32_t)length : draw(2) ? draw(ROOM) : 0xFFFFFFFFu - draw(3), NULL, 0, 0);
        } else {
            say((uint8_t)draw(256), id, at, NULL, 0, 0);
        }
        if (power == 0 || draw(3000) == 0) {
            sensor_start(u32_at(whole + 24), u32_at(whole + 28), whole[36], WORK);
        }
        int after = sensor_active();
        must(before < 0 || after >= 0, "a model that was in force is gone");
        if (after >= 0) {
            fedmq_model again;
            must(fedmq_model_open(&again, memory[after], u32_at(memory[after] + 8)) == FEDMQ_MODEL_OK,
                 "what is in force is no model");
            must(again.id == slots.model->id, "another model than is said");
            changes += again.id != id_before;
        }
        refused += slots.outcome == FEDMQ_MODEL_MALFORMED || slots.outcome == FEDMQ_MODEL_SELF_TEST;
    }
    free(image);
    printf("%lu changes, %lu refused\n", changes, refused);
}

int main(int count, char **words)
{
    must(count == 5, "sensor images | orders CASES SEED FILE");
    size_t length;
    uint8_t *whole = load(words[4], &length);
    state = strtoull(words[3], NULL, 10) * 2654435769u + 1;
    if (strcmp(words[1], "images") == 0) {
        images(strtoul(words[2], NULL, 10), whole, length);
    } else {
        orders(strtoul(words[2], NULL, 10), whole, length);
    }
    free(whole);
    return 0;
}
