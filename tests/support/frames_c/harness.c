/* The C library as a program, for the tests in Python.
 *
 *   harness decode ROOM        a stream on stdin; a line for each frame: kind sensor boot sequence payload (hex, or -);
 *                              at the end: damaged COUNT
 *   harness encode             lines on stdin; the frames' bytes on stdout. A line is one of
 *                              raw ROOM kind sensor boot sequence payload
 *                              samples sensor boot sequence taken_us rate_mhz scale_bits channels overrun count
 *                                    and the steps
 *                              hello sensor boot sequence uid name firmware now_us rate_mhz scale_bits channels
 *                                    and for each channel: name unit offset_bits gain_bits       (texts in hex, or -)
 *                              What does not fit comes out as nothing.
 *   harness fuzz CASES SEED    random input to everything; ends with status 0, or by abort or a sanitizer.
 *
 * Buffers are allocated as large as they are said to be, so that a sanitizer sees one byte too many.
 */
#include "fedmq_sensor.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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

/* --- decode ------------------------------------------------------------------------------------------------------- */

static int decode(size_t room)
{
    uint8_t *buffer = (uint8_t *)get(room);
    unsigned long damaged = 0;
    fedmq_decoder d;
    int c;
    fedmq_decoder_start(&d, buffer, room);
    while ((c = getchar()) != EOF) {
        fedmq_outcome outcome = fedmq_decode(&d, (uint8_t)c);
        damaged += outcome == FEDMQ_DAMAGED;
        if (outcome == FEDMQ_FRAME) {
            printf("%u %u %u %" PRIu32 " ", d.kind, d.head.sensor, d.head.boot, d.head.sequence);
            for (size_t i = 0; i < d.length; i++) {
                printf("%02x", d.payload[i]);
            }
            puts(d.length > 0 ? "" : "-");
        }
    }
    printf("damaged %lu\n", damaged);
    free(buffer);
    return 0;
}

/* --- encode ------------------------------------------------------------------------------------------------------- */

static uint64_t number(void)
{
    uint64_t read;
    must(scanf("%" SCNu64, &read) == 1, "a number expected");
    return read;
}

static float from_bits(void)
{
    uint32_t bits = (uint32_t)number();
    float read;
    memcpy(&read, &bits, sizeof read);
    return read;
}

static size_t hex(void *to, size_t most)
{
    char text[2 * FEDMQ_PAYLOAD_MAX + 2];
    size_t length = 0;
    must(scanf("%2017s", text) == 1, "hex expected");
    for (; text[0] != '-' && text[2 * length] != 0; length++) {
        unsigned byte;
        must(length < most && sscanf(text + 2 * length, "%2x", &byte) == 1, "shorter hex expected");
        ((uint8_t *)to)[length] = (uint8_t)byte;
    }
    return length;
}

static fedmq_head head(void)
{
    fedmq_head h;
    h.sensor = (uint16_t)number();
    h.boot = (uint16_t)number();
    h.sequence = (uint32_t)number();
    return h;
}

static size_t encode_raw(uint8_t *out, size_t room)
{
    uint8_t kind = (uint8_t)number(), payload[FEDMQ_PAYLOAD_MAX];
    fedmq_head h = head();
    size_t length = hex(payload, sizeof payload);
    fedmq_encoder e;
    fedmq_begin(&e, out, room, kind, &h);
    fedmq_put(&e, payload, length);
    return fedmq_end(&e);
}

static size_t encode_samples(uint8_t *out, size_t room)
{
    fedmq_head h = head();
    fedmq_samples block;
    fedmq_encoder e;
    block.taken_us = number();
    block.rate_mhz = (uint32_t)number();
    block.scale = from_bits();
    block.channels = (uint8_t)number();
    block.overrun = (uint8_t)number();
    block.count = (uint16_t)number();
    fedmq_begin_samples(&e, out, room, &h, &block);
    for (unsigned i = 0; i < (unsigned)block.channels * block.count; i++) {
        int step;
        must(scanf("%d", &step) == 1, "a sample expected");
        fedmq_put_i16(&e, (int16_t)step);
    }
    return fedmq_end(&e);
}

static size_t encode_hello(uint8_t *out, size_t room)
{
    fedmq_channel channels[FEDMQ_CHANNELS_MAX];
    fedmq_identity who;
    fedmq_head h = head();
    uint64_t now_us;
    memset(&who, 0, sizeof who);
    memset(channels, 0, sizeof channels);
    hex(who.uid, sizeof who.uid);
    hex(who.name, sizeof who.name);
    hex(who.firmware, sizeof who.firmware);
    now_us = number();
    who.rate_mhz = (uint32_t)number();
    who.scale = from_bits();
    who.channels = (uint8_t)number();
    must(who.channels <= FEDMQ_CHANNELS_MAX, "fewer channels expected");
    who.channel = channels;
    for (unsigned i = 0; i < who.channels; i++) {
        hex(channels[i].name, sizeof channels[i].name);
        hex(channels[i].unit, sizeof channels[i].unit);
        channels[i].offset = from_bits();
        channels[i].gain = from_bits();
    }
    return fedmq_encode_hello(out, room, &h, &who, now_us);
}

static int encode(void)
{
    char what[16];
    while (scanf("%15s", what) == 1) {
        int raw = strcmp(what, "raw") == 0;
        size_t room = raw ? (size_t)number() : FEDMQ_ENCODED(FEDMQ_PAYLOAD_MAX);
        uint8_t *out = (uint8_t *)get(room);
        size_t length = raw                            ? encode_raw(out, room)
                        : strcmp(what, "samples") == 0 ? encode_samples(out, room)
                                                       : encode_hello(out, room);
        must(length <= room, "more was written than there was room");
        fwrite(out, 1, length, stdout);
        free(out);
    }
    return 0;
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

/* Bytes of one of four tempers: any, with many zeros, with hardly any, alternating. */
static void fill(uint8_t *bytes, size_t length)
{
    uint32_t temper = draw(4);
    for (size_t i = 0; i < length; i++) {
        uint32_t r = draw(1u << 16);
        bytes[i] = (uint8_t)(temper == 0   ? r
                             : temper == 1 ? (r % 3 ? 0 : r >> 8)
                             : temper == 2 ? (r % 300 ? r | 1 : 0)
                                           : r & 1);
    }
}

/* A frame of random content goes out into a buffer of random size, and comes in again, whole or damaged. */
static unsigned there_and_back(void)
{
    size_t length = draw(8) ? draw(FEDMQ_PAYLOAD_MAX + 1) : draw(2) ? FEDMQ_PAYLOAD_MAX : draw(2000);
    size_t needed = FEDMQ_ENCODED(length);
    size_t room = draw(4) ? needed : draw((uint32_t)needed + 4);
    uint8_t *payload = (uint8_t *)get(length), *out = (uint8_t *)get(room);
    fedmq_head h;
    fedmq_encoder e;
    unsigned came = 0;
    fill(payload, length);
    h.sensor = (uint16_t)draw(1u << 16);
    h.boot = (uint16_t)draw(3);
    h.sequence = draw(1u << 31);
    fedmq_begin(&e, out, room, (uint8_t)draw(256), &h);
    fedmq_put(&e, payload, length);
    size_t sent = fedmq_end(&e);
    must(sent <= room, "more was written than there was room");
    must(sent > 0 || room < needed, "a buffer of the size that the header names was too small");
    for (size_t i = 0; i + 1 < sent; i++) {
        must(out[i] != 0, "a delimiter stands inside a frame");
    }
    if (sent > 0) {
        size_t room_in = draw(4) ? length + FEDMQ_OVERHEAD : draw(1100);
        uint8_t *in = (uint8_t *)get(room_in);
        size_t damage = draw(2) ? draw((uint32_t)sent) : sent;
        fedmq_decoder d;
        fedmq_decoder_start(&d, in, room_in);
        if (damage < sent) {
            out[damage] = (uint8_t)(out[damage] ^ (1u << draw(8)));
        }
        for (size_t i = 0; i < sent; i++) {
            if (fedmq_decode(&d, out[i]) == FEDMQ_FRAME) {
                came++;
                must(damage == sent, "a damaged frame was taken");
                must(d.length == length && memcmp(d.payload, payload, length) == 0, "another frame came than was sent");
                must(d.head.sensor == h.sensor && d.head.boot == h.boot, "another head");
                must(d.head.sequence == h.sequence, "another sequence");
                (void)fedmq_asked(&d, h.sensor);
            }
        }
        must(came == (damage == sent && length <= FEDMQ_PAYLOAD_MAX && length + FEDMQ_OVERHEAD <= room_in),
             "a whole frame was not taken, or one too long was");
        free(in);
    }
    free(payload);
    free(out);
    return came;
}

/* Any bytes at all into a decoder of any size. */
static void anything(void)
{
    size_t length = draw(1500), room = draw(1100);
    uint8_t *bytes = (uint8_t *)get(length), *in = (uint8_t *)get(room);
    fedmq_decoder d;
    fill(bytes, length);
    fedmq_decoder_start(&d, in, room);
    for (size_t i = 0; i < length; i++) {
        must(fedmq_decode(&d, bytes[i]) != FEDMQ_FRAME, "noise was taken for a frame");
    }
    free(bytes);
    free(in);
}

static int fuzz(unsigned long cases, uint64_t seed)
{
    unsigned long came = 0;
    state = seed * 2654435769u + 1;
    for (unsigned long i = 0; i < cases; i++) {
        if (i % 4 == 3) {
            anything();
        } else {
            came += there_and_back();
        }
    }
    printf("%lu cases, %lu frames there and back\n", cases, came);
    return 0;
}

int main(int count, char **words)
{
    if (count == 3 && strcmp(words[1], "decode") == 0) {
        return decode(strtoul(words[2], NULL, 10));
    }
    if (count == 2 && strcmp(words[1], "encode") == 0) {
        return encode();
    }
    if (count == 4 && strcmp(words[1], "fuzz") == 0) {
        return fuzz(strtoul(words[2], NULL, 10), strtoull(words[3], NULL, 10));
    }
    fprintf(stderr, "harness decode ROOM | encode | fuzz CASES SEED\n");
    return 2;
}
