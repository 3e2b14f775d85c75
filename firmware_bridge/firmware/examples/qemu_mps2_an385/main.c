/* A whole sensor: samples three axes at a steady rate, sends them in frames of 64, says who it is when asked; takes
 * models over the same line, runs the newest one on its samples, and sends what it finds.
 *
 * The structure is that of a real one. The tick stands for the interrupt of an accelerometer whose FIFO has filled up
 * to its watermark, and acceleration() for reading one sample from it; everything else stays.
 *
 *     make                                   builds sensor.elf
 *     make run                               runs it in QEMU, with its UART on the Unix socket /tmp/sensor.sock
 */
#include "board.h"
#include "fedmq_sensor.h"
#include "fedmq_slots.h"

#ifndef SAMPLE_HZ
#define SAMPLE_HZ 3125 /* divides 1,000,000: a sample takes whole microseconds */
#endif

#ifndef KNOCK
#define KNOCK 2000 /* how hard the knock is, in steps: 0 for a machine that is well */
#endif

/* The FIFO keeps this many samples that nobody has read, and then loses the oldest. */
#ifndef FIFO_DEPTH
#define FIFO_DEPTH 32
#endif

enum { CHANNELS = 3, BLOCK = 64, WATERMARK = 16, SAMPLE_US = 1000000 / SAMPLE_HZ, HELLO_EVERY = 10 * SAMPLE_HZ };

static const fedmq_channel channels[CHANNELS] = {
    {"x", "m/s2", 0.0f, 1.0f}, {"y", "m/s2", 0.0f, 1.0f}, {"z", "m/s2", 0.0f, 1.0f}};

static const fedmq_identity identity = {
    {'A', 'N', '3', '8', '5'}, "qemu-motor", "1.0.0", SAMPLE_HZ * 1000u, 0.03824f, CHANNELS, channels};

static volatile uint32_t made; /* samples that have gone into the FIFO */
static uint8_t asked;          /* somebody wants a hello */

static fedmq_head samples_head = {1, 0, 0}; /* boot 0: this board has neither a counter in flash nor random numbers */
static fedmq_head hello_head = {1, 0, 0}, ack_head = {1, 0, 0}, score_head = {1, 0, 0};

/* Bytes from the line that wait for the main loop: it may be sending for 5 ms, in which as many come. An order has 300
   at most, and the next one comes after its ack. */
static uint8_t heard[1024];
static volatile uint32_t heard_in;
static uint32_t heard_out;

static fedmq_decoder decoder;
static fedmq_slots slots;

void on_tick(void)
{
    made += WATERMARK;
}

void on_byte(uint8_t byte)
{
    heard[heard_in % sizeof heard] = byte;
    heard_in++;
}

/* A shaft at 1/64 of the sampling rate, its second harmonic on z, a knock every 500 samples, and noise of a hash. */
static int16_t acceleration(uint32_t n, int axis)
{
    static const int16_t sine[64] = {
        0,    39,   78,   116,  153,  189,  222,  254,  283,  309,  333,  353,  370,  383,  392,  398,
        400,  398,  392,  383,  370,  353,  333,  309,  283,  254,  222,  189,  153,  116,  78,   39,
        0,    -39,  -78,  -116, -153, -189, -222, -254, -283, -309, -333, -353, -370, -383, -392, -398,
        -400, -398, -392, -383, -370, -353, -333, -309, -283, -254, -222, -189, -153, -116, -78,  -39};
    uint32_t hash = (n * 3 + (uint32_t)axis) * 2654435761u;
    int32_t value = sine[(n + 16u * (uint32_t)axis) & 63] + (int32_t)(hash >> 26) - 32;
    if (axis == 2) {
        value += sine[(2 * n) & 63] / 2 + (n % 500 < 4 ? KNOCK : 0);
    }
    return (int16_t)value;
}

static void say_hello(uint32_t n)
{
    static uint8_t out[FEDMQ_HELLO_ENCODED(CHANNELS)];
    size_t length = fedmq_encode_hello(out, sizeof out, &hello_head, &identity, (uint64_t)n * SAMPLE_US);
    board_send(out, length);
    hello_head.sequence++;
}

static void hear(void)
{
    if (heard_in - heard_out > sizeof heard) {
        heard_out = heard_in; /* too late: the rest of a frame fails its checks, and the order comes again */
    }
    while (heard_out != heard_in) {
        if (fedmq_decode(&decoder, heard[heard_out++ % sizeof heard]) != FEDMQ_FRAME) {
            continue;
        }
        if (fedmq_asked(&decoder, hello_head.sensor)) {
            asked = 1;
        } else if (fedmq_slots_take(&slots, &decoder, ack_head.sensor)) {
            static uint8_t out[FEDMQ_ENCODED(FEDMQ_ACK_BYTES)];
            board_send(out, fedmq_encode_ack(out, sizeof out, &ack_head, &slots));
            ack_head.sequence++;
        }
    }
}

/* --- the model ---------------------------------------------------------------------------------------------------- */

static int8_t work[4096];
static uint32_t in_window; /* samples of the window at hand, and between it and the next one */

/* One sample of all axes, the |n|th. */
static void examine(uint32_t n, const int16_t axes[CHANNELS])
{
    const fedmq_model *model = slots.model;
    if (slots.anew) {
        slots.anew = 0;
        in_window = 0;
    }
    if (model == NULL) {
        return;
    }
    if (in_window < model->samples) {
        for (uint32_t axis = 0; axis < CHANNELS; axis++) {
            uint32_t i = in_window * CHANNELS + axis;
            work[i] = fedmq_model_input(model, i, axes[axis]);
        }
    }
    in_window++;
    if (in_window == model->samples) {
        static uint8_t out[FEDMQ_ENCODED(FEDMQ_PAYLOAD_MAX)];
        const int8_t *found = fedmq_model_run(model, work);
        uint64_t taken_us = (uint64_t)(n + 1 - model->samples) * SAMPLE_US;
        int32_t score = fedmq_model_score(model, work, found);
        board_send(out, fedmq_encode_score(out, sizeof out, &score_head, model, taken_us, found, score));
        score_head.sequence++;
    }
    if (in_window == model->hop) {
        in_window = 0;
    }
}

int main(void)
{
    static const union {
        float number;
        uint32_t bits;
    } scale = {0.03824f};
    const fedmq_flash flash = {{board_slot[0], board_slot[1]}, BOARD_SLOT, board_erase, board_write, NULL};
    const fedmq_feed feed = {SAMPLE_HZ * 1000u, scale.bits, CHANNELS};
    static uint8_t in[FEDMQ_OVERHEAD + FEDMQ_ORDER_HEAD + 256], out[FEDMQ_SAMPLES_ENCODED(CHANNELS, BLOCK)];
    static const uint8_t delimiter = 0;
    fedmq_encoder encoder;
    uint32_t taken = 0, in_block = 0;
    uint32_t hello_at = HELLO_EVERY;
    uint8_t overrun = 0;

    fedmq_decoder_start(&decoder, in, sizeof in);
    fedmq_slots_start(&slots, &flash, &feed, work, sizeof work);
    board_start(WATERMARK * SAMPLE_US);
    board_send(&delimiter, 1); /* ends whatever the line had picked up */
    say_hello(0);

    for (;;) {
        hear();
        if (in_block == 0 && (asked || (int32_t)(taken - hello_at) >= 0)) {
            asked = 0;
            hello_at = taken + HELLO_EVERY;
            say_hello(taken);
        }
        if (taken == made) {
            board_sleep();
            continue;
        }
        if (made - taken > FIFO_DEPTH) {
            taken = made - FIFO_DEPTH;
            overrun = 1;
            in_block = 0; /* a block must be whole: what it has begun with is lost, too */
            in_window = 0;
        }
        if (in_block == 0) {
            fedmq_samples block = {(uint64_t)taken * SAMPLE_US, SAMPLE_HZ * 1000u, 0.03824f, CHANNELS, overrun, BLOCK};
            fedmq_begin_samples(&encoder, out, sizeof out, &samples_head, &block);
            overrun = 0;
        }
        int16_t axes[CHANNELS];
        for (int axis = 0; axis < CHANNELS; axis++) {
            axes[axis] = acceleration(taken, axis);
            fedmq_put_i16(&encoder, axes[axis]);
        }
        examine(taken, axes);
        taken++;
        if (++in_block == BLOCK) {
            board_send(out, fedmq_end(&encoder));
            samples_head.sequence++;
            in_block = 0;
        }
    }
}
