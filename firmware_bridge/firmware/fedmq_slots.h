/* fedmq_slots: takes a new model over the line while the old one runs, and puts it in force once it is whole and right.
 *
 * Copy fedmq_slots.h and fedmq_slots.c beside fedmq_sensor and fedmq_model. C99, nothing allocated, no library.
 *
 *     static int8_t work[2048];
 *     static fedmq_slots slots;
 *
 *     fedmq_slots_start(&slots, &flash, work, sizeof work, &feed);          the newest model that is right, or none
 *
 *     on every frame that fedmq_decode gives:
 *         if (fedmq_slots_take(&slots, &decoder, sensor)) {
 *             send fedmq_encode_ack(out, sizeof out, &ack_head, &slots) bytes of out; ack_head.sequence++;
 *         }
 *     if (slots.model != NULL) run it, and send its result by fedmq_encode_score
 *
 * There are two slots. An update goes into the one that is not in force, so that nothing that happens to it touches the
 * model that runs: neither noise nor a cut nor a restart. Once all of it is there and its checks and its self-test hold,
 * a record of 16 bytes at the end of its slot puts it in force. A record that is written half does not count.
 */
#ifndef FEDMQ_SLOTS_H
#define FEDMQ_SLOTS_H

#include "fedmq_model.h"
#include "fedmq_sensor.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    FEDMQ_SCORE = 0x03,
    FEDMQ_ACK = 0x04,
    FEDMQ_MODEL_CHUNK = 0x82,

    /* Bytes of an order before its chunk, of an ack, of a score before its numbers, and of a slot's record. */
    FEDMQ_ORDER_HEAD = 12,
    FEDMQ_ACK_BYTES = 28,
    FEDMQ_SCORE_HEAD = 20,
    FEDMQ_RECORD = 16,

    /* Most outputs that a score can carry. */
    FEDMQ_OUTPUTS_MAX = FEDMQ_PAYLOAD_MAX - FEDMQ_SCORE_HEAD,

    /* Orders. */
    FEDMQ_ASK = 0,
    FEDMQ_BEGIN = 1,
    FEDMQ_CHUNK = 2,
    FEDMQ_FINISH = 3
};

/* What came of an order. 6, 7 and 9 are those of fedmq_model_fault. */
enum {
    FEDMQ_DONE = 0,
    FEDMQ_UNKNOWN_ORDER = 1,
    FEDMQ_NOT_BEGUN = 2,  /* nothing of this image is here: begin */
    FEDMQ_INCOMPLETE = 3, /* go on from |received| */
    FEDMQ_TOO_LONG = 4,   /* for a slot */
    FEDMQ_UNFIT = 8,      /* for other samples than this sensor has, or it needs more than |work| has */
    FEDMQ_FLASH = 10      /* could not be erased or written */
};

/* Yours: where the slots are. Both must be readable as memory. For storage that is not, read a slot into RAM as you
 * start, and again as a write succeeds.
 */
typedef struct {
    const uint8_t *slot[2]; /* |room| bytes each, kept through a restart */
    uint32_t room;          /* a multiple of 16; the longest image is FEDMQ_RECORD less */

    /* Both return 0 if they did, and only then. After erase all of a slot must read as 0xFF, and every byte is written
       at most once before the next erase. |at| is a multiple of the length of the gateway's chunks (256; see docs), or
       room - FEDMQ_RECORD; only the last chunk is shorter: pad it with 0xFF to what your flash writes at once. */
    int (*erase)(void *context, int slot);
    int (*write)(void *context, int slot, uint32_t at, const uint8_t *bytes, size_t length);
    void *context;
} fedmq_flash;

/* What this sensor's samples are. A model for others is refused. */
typedef struct {
    uint32_t rate_mhz;
    uint32_t sample_scale; /* bits of the float32 that samples and hello have */
    uint8_t channels;
} fedmq_feed;

typedef struct {
    /* Yours to read. */
    const fedmq_model *model; /* in force, or NULL: there is none */
    int active;               /* its slot, or -1 */
    int anew;                 /* 1 after a self-test used |work|: begin your window anew, and set it to 0 */

    /* The library's own. */
    fedmq_model of[2];
    const fedmq_flash *flash;
    const fedmq_feed *feed;
    int8_t *work;
    size_t work_room;
    uint32_t sequence; /* of the record in force */
    uint32_t incoming; /* id of the image that is coming */
    uint32_t length;   /* of it; 0: none is coming */
    uint32_t received;
    uint32_t refused; /* id of the image that was refused last, */
    uint8_t why;      /* and why; 0: none was */
    uint8_t order;    /* that was answered last, its outcome, and the sequence of its frame */
    uint8_t outcome;
    uint32_t answers;
} fedmq_slots;

/* fedmq_slots_start
 *
 * Finds the newest model that is whole, fits this sensor, and passes its self-test; an older one where the newest does
 * not. |flash|, |feed| and |work|, of |room| bytes, stay in use. |work| is for running models, and for self-tests.
 */
void fedmq_slots_start(fedmq_slots *s, const fedmq_flash *flash, const fedmq_feed *feed, int8_t *work, size_t room);

/* fedmq_slots_take
 *
 * After FEDMQ_FRAME: does what the frame orders, if it is an order to this sensor. Returns 1 if it was: send an ack.
 * Doing the same order twice does no harm. Begin takes as long as erasing a slot; finish reads all of it twice and runs
 * it once. Samples that are lost meanwhile are lost on the sensor: say so in |overrun|.
 */
int fedmq_slots_take(fedmq_slots *s, const fedmq_decoder *d, uint16_t sensor);

/* fedmq_encode_ack
 *
 * What came of the last order, and what is here, into |out|: FEDMQ_ENCODED(FEDMQ_ACK_BYTES) bytes at best. Returns the
 * number of bytes to send, or 0 if they did not fit.
 */
size_t fedmq_encode_ack(void *out, size_t room, const fedmq_head *head, const fedmq_slots *s);

/* fedmq_encode_score
 *
 * A window's result. |taken_us|: as in samples, of the window's first one. |out|: what fedmq_model_run gave, |score|
 * what fedmq_model_score gave. |bytes|: FEDMQ_ENCODED(FEDMQ_SCORE_HEAD + 4) for an anomaly score, and
 * FEDMQ_ENCODED(FEDMQ_SCORE_HEAD + model.outputs) for outputs.
 */
size_t fedmq_encode_score(void *bytes, size_t room, const fedmq_head *head, const fedmq_model *m, uint64_t taken_us,
                          const int8_t *out, int32_t score);

#ifdef __cplusplus
}
#endif
#endif
