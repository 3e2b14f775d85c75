/* See fedmq_sensor.h. */
#include "fedmq_sensor.h"

enum { HEADER = 10, CHECKS = 6 };

/* Both checksums are over header and payload. */

static void checks_start(fedmq_checks *c)
{
    c->crc32 = 0xFFFFFFFFu;
    c->crc16 = 0xFFFFu;
}

static void checks_add(fedmq_checks *c, uint8_t byte)
{
    /* CRC-32/ISO-HDLC, as in Ethernet and zip: polynomial 0xEDB88320, from ~0 and inverted, lowest bit first. Four bits
       at a time: the table is 64 bytes, and it takes a quarter of the time of single bits. */
    static const uint32_t table[16] = {
        0x00000000, 0x1DB71064, 0x3B6E20C8, 0x26D930AC, 0x76DC4190, 0x6B6B51F4, 0x4DB26158, 0x5005713C,
        0xEDB88320, 0xF00F9344, 0xD6D6A3E8, 0xCB61B38C, 0x9B64C2B0, 0x86D3D2D4, 0xA00AE278, 0xBDBDF21C};
    uint32_t crc32 = c->crc32 ^ byte;
    crc32 = (crc32 >> 4) ^ table[crc32 & 15];
    c->crc32 = (crc32 >> 4) ^ table[crc32 & 15];

    /* CRC-16/IBM-3740: polynomial 0x1021, from 0xFFFF, highest bit first. It has so few terms (x^16 + x^12 + x^5 + 1)
       that a whole byte is three shifts. */
    uint8_t x = (uint8_t)((c->crc16 >> 8) ^ byte);
    x = (uint8_t)(x ^ (x >> 4));
    c->crc16 = (uint16_t)((c->crc16 << 8) ^ (x << 12) ^ (x << 5) ^ x);
}

/* --- out ---------------------------------------------------------------------------------------------------------- */

static void emit(fedmq_encoder *e, uint8_t byte)
{
    if (e->used < e->room) {
        e->out[e->used] = byte;
    }
    e->used++;
}

/* Ends the COBS block at hand: its length, itself included, goes to the place that was left for it. */
static void end_block(fedmq_encoder *e)
{
    if (e->code_at < e->room) {
        e->out[e->code_at] = (uint8_t)(e->used - e->code_at);
    }
    e->code_at = e->used;
}

static void put_byte(fedmq_encoder *e, uint8_t byte)
{
    checks_add(&e->checks, byte);
    /* A full block ends only once there is more to say: a frame that ends with it needs no empty one behind. */
    if (e->used - e->code_at == 255) {
        end_block(e);
        emit(e, 0);
    }
    if (byte == 0) {
        end_block(e);
    }
    emit(e, byte);
}

/* The lowest |length| bytes of a number, the lowest first. */
static void put_number(fedmq_encoder *e, uint32_t number, int length)
{
    for (; length > 0; length--) {
        put_byte(e, (uint8_t)number);
        number >>= 8;
    }
}

void fedmq_put_u32(fedmq_encoder *e, uint32_t number)
{
    put_number(e, number, 4);
}

static void put_u64(fedmq_encoder *e, uint64_t number)
{
    fedmq_put_u32(e, (uint32_t)number);
    fedmq_put_u32(e, (uint32_t)(number >> 32));
}

static void put_float(fedmq_encoder *e, float number)
{
    union {
        float number;
        uint32_t bits;
    } same; /* not memcpy: there may be no library */
    same.number = number;
    fedmq_put_u32(e, same.bits);
}

void fedmq_begin(fedmq_encoder *e, void *out, size_t room, uint8_t kind, const fedmq_head *head)
{
    e->out = (uint8_t *)out;
    e->room = room;
    e->used = 0;
    e->code_at = 0;
    checks_start(&e->checks);
    emit(e, 0);
    put_byte(e, FEDMQ_VERSION);
    put_byte(e, kind);
    put_number(e, head->sensor, 2);
    put_number(e, head->boot, 2);
    fedmq_put_u32(e, head->sequence);
}

void fedmq_put(fedmq_encoder *e, const void *bytes, size_t length)
{
    const uint8_t *from = (const uint8_t *)bytes;
    for (size_t i = 0; i < length; i++) {
        put_byte(e, from[i]);
    }
}

void fedmq_put_i16(fedmq_encoder *e, int16_t number)
{
    put_number(e, (uint16_t)number, 2);
}

size_t fedmq_end(fedmq_encoder *e)
{
    fedmq_checks sums = e->checks;
    fedmq_put_u32(e, ~sums.crc32);
    put_number(e, sums.crc16, 2);
    end_block(e);
    emit(e, 0);
    return e->used <= e->room ? e->used : 0;
}

void fedmq_begin_samples(fedmq_encoder *e, void *out, size_t room, const fedmq_head *head, const fedmq_samples *block)
{
    fedmq_begin(e, out, room, FEDMQ_SAMPLES, head);
    put_u64(e, block->taken_us);
    fedmq_put_u32(e, block->rate_mhz);
    put_float(e, block->scale);
    put_byte(e, block->channels);
    put_byte(e, block->overrun);
    put_number(e, block->count, 2);
}

size_t fedmq_encode_hello(void *out, size_t room, const fedmq_head *head, const fedmq_identity *who, uint64_t now_us)
{
    fedmq_encoder e;
    fedmq_begin(&e, out, room, FEDMQ_HELLO, head);
    fedmq_put(&e, who->uid, sizeof who->uid);
    fedmq_put(&e, who->name, sizeof who->name);
    fedmq_put(&e, who->firmware, sizeof who->firmware);
    put_u64(&e, now_us);
    fedmq_put_u32(&e, who->rate_mhz);
    put_float(&e, who->scale);
    put_number(&e, who->channels, 2);
    for (const fedmq_channel *c = who->channel; c < who->channel + who->channels; c++) {
        fedmq_put(&e, c->name, sizeof c->name);
        fedmq_put(&e, c->unit, sizeof c->unit);
        put_float(&e, c->offset);
        put_float(&e, c->gain);
    }
    return fedmq_end(&e);
}

/* --- in ----------------------------------------------------------------------------------------------------------- */

static uint32_t number_at(const uint8_t *bytes, int length)
{
    uint32_t number = 0;
    while (length > 0) {
        number = number << 8 | bytes[--length];
    }
    return number;
}

static void restart(fedmq_decoder *d)
{
    d->used = 0;
    d->code = 0; /* no block yet */
    d->left = 0;
    d->bad = 0;
}

/* The frame in the buffer: 1 if its checks hold. */
static int check(fedmq_decoder *d)
{
    const uint8_t *b = d->buffer;
    if (d->bad || d->left || d->used < FEDMQ_OVERHEAD || d->used > FEDMQ_FRAME_MAX) {
        return 0;
    }
    size_t end = d->used - CHECKS;
    fedmq_checks sums;
    checks_start(&sums);
    for (size_t i = 0; i < end; i++) {
        checks_add(&sums, b[i]);
    }
    if (~sums.crc32 != number_at(b + end, 4) || sums.crc16 != number_at(b + end + 4, 2) || b[0] != FEDMQ_VERSION) {
        return 0;
    }
    d->kind = b[1];
    d->head.sensor = (uint16_t)number_at(b + 2, 2);
    d->head.boot = (uint16_t)number_at(b + 4, 2);
    d->head.sequence = number_at(b + 6, 4);
    d->payload = b + HEADER;
    d->length = end - HEADER;
    return 1;
}

void fedmq_decoder_start(fedmq_decoder *d, void *buffer, size_t room)
{
    d->buffer = (uint8_t *)buffer;
    d->room = room;
    restart(d);
}

fedmq_outcome fedmq_decode(fedmq_decoder *d, uint8_t byte)
{
    if (byte == 0) {
        fedmq_outcome outcome = FEDMQ_MORE; /* two delimiters in a row say nothing */
        if (d->code != 0) {
            outcome = check(d) ? FEDMQ_FRAME : FEDMQ_DAMAGED;
        }
        restart(d);
        return outcome;
    }
    if (d->left > 0) {
        d->left--;
    } else {
        /* A block begins. A zero stands between it and the one before, unless that was full, or there was none. */
        int zero = d->code != 0 && d->code != 255;
        d->code = byte;
        d->left = (uint8_t)(byte - 1);
        if (!zero) {
            return FEDMQ_MORE;
        }
        byte = 0;
    }
    if (d->used < d->room) {
        d->buffer[d->used++] = byte;
    } else {
        d->bad = 1;
    }
    return FEDMQ_MORE;
}

int fedmq_asked(const fedmq_decoder *d, uint16_t sensor)
{
    return d->kind == FEDMQ_ASK_HELLO && d->length == 0 &&
           (d->head.sensor == sensor || d->head.sensor == FEDMQ_EVERYONE);
}
