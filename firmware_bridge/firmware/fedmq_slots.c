/* See fedmq_slots.h. */
#include "fedmq_slots.h"

enum { NONE = 0xFF, LENGTH_AT = 8 };

static uint32_t u32_at(const uint8_t *bytes)
{
    return bytes[0] | (uint32_t)bytes[1] << 8 | (uint32_t)bytes[2] << 16 | (uint32_t)bytes[3] << 24;
}

static void put_u32_at(uint8_t *bytes, uint32_t number)
{
    for (int i = 0; i < 4; i++) {
        bytes[i] = (uint8_t)(number >> 8 * i);
    }
}

/* --- records ------------------------------------------------------------------------------------------------------ */

/* magic | sequence | id of the image | CRC-32 of these, a u32 each. The larger sequence is the newer one. */
enum { MAGIC = 0x534D5146 /* "FQMS" */ };

static const uint8_t *record_of(const fedmq_slots *s, int slot)
{
    return s->flash->slot[slot] + s->flash->room - FEDMQ_RECORD;
}

static int record_holds(const uint8_t *record)
{
    return u32_at(record) == MAGIC && u32_at(record + 12) == fedmq_crc32(record, 12);
}

/* --- what may be in force ----------------------------------------------------------------------------------------- */

/* What is wrong with the image in a slot; the slot's model is opened. */
static uint8_t fault_of(fedmq_slots *s, int slot, uint32_t length, uint32_t id)
{
    fedmq_model *m = &s->of[slot];
    fedmq_model_fault fault = fedmq_model_open(m, s->flash->slot[slot], length);
    if (fault != FEDMQ_MODEL_OK) {
        return (uint8_t)fault;
    }
    if (m->id != id) {
        return FEDMQ_MODEL_CHECKSUM;
    }
    if (m->work > s->work_room || m->channels != s->feed->channels ||
        (m->rate_mhz != 0 && m->rate_mhz != s->feed->rate_mhz) ||
        (m->sample_scale != 0 && m->sample_scale != s->feed->sample_scale) ||
        (m->result == FEDMQ_OUTPUTS && m->outputs > FEDMQ_OUTPUTS_MAX)) {
        return FEDMQ_UNFIT;
    }
    s->anew = 1;
    return (uint8_t)fedmq_model_self_test(m, s->work);
}

void fedmq_slots_start(fedmq_slots *s, const fedmq_flash *flash, const fedmq_feed *feed, int8_t *work, size_t room)
{
    s->flash = flash;
    s->feed = feed;
    s->work = work;
    s->work_room = room;
    s->model = NULL;
    s->active = -1;
    s->anew = 0;
    s->sequence = s->incoming = s->length = s->received = s->refused = s->answers = 0;
    s->why = s->order = s->outcome = 0;
    for (int slot = 0; slot < 2; slot++) {
        const uint8_t *record = record_of(s, slot);
        uint32_t sequence = u32_at(record + 4), length = u32_at(flash->slot[slot] + LENGTH_AT);
        if (!record_holds(record) || length > flash->room - FEDMQ_RECORD) {
            continue;
        }
        if (s->model != NULL && sequence - s->sequence > INT32_MAX) {
            continue; /* older, also where the number has wrapped */
        }
        if (fault_of(s, slot, length, u32_at(record + 8)) == FEDMQ_DONE) {
            s->model = &s->of[slot];
            s->active = slot;
            s->sequence = sequence;
        }
    }
}

/* --- orders ------------------------------------------------------------------------------------------------------- */

static int in_force(const fedmq_slots *s, uint32_t id)
{
    return s->model != NULL && s->model->id == id;
}

static uint8_t begin(fedmq_slots *s, uint32_t id, uint32_t length)
{
    if (in_force(s, id) || (s->length != 0 && s->incoming == id && s->length == length)) {
        return FEDMQ_DONE;
    }
    s->length = s->received = 0;
    s->why = 0;
    if (length > s->flash->room - FEDMQ_RECORD) {
        return FEDMQ_TOO_LONG;
    }
    if (length == 0) {
        return FEDMQ_MODEL_MALFORMED;
    }
    if (s->flash->erase(s->flash->context, s->active == 0) != 0) {
        return FEDMQ_FLASH;
    }
    s->incoming = id;
    s->length = length;
    return FEDMQ_DONE;
}

static uint8_t chunk(fedmq_slots *s, uint32_t id, uint32_t at, const uint8_t *bytes, size_t length)
{
    if (in_force(s, id)) {
        return FEDMQ_DONE;
    }
    if (s->length == 0 || s->incoming != id) {
        return FEDMQ_NOT_BEGUN;
    }
    if (at != s->received) {
        return FEDMQ_DONE; /* it has come already, or one before it has not: the ack says where to go on */
    }
    if (length > s->length - s->received) {
        return FEDMQ_TOO_LONG;
    }
    if (s->flash->write(s->flash->context, s->active == 0, at, bytes, length) != 0) {
        s->length = s->received = 0;
        return FEDMQ_FLASH;
    }
    s->received += (uint32_t)length;
    return FEDMQ_DONE;
}

static uint8_t put_in_force(fedmq_slots *s)
{
    int slot = s->active == 0;
    uint8_t record[FEDMQ_RECORD];
    uint8_t fault = fault_of(s, slot, s->length, s->incoming);
    if (fault != FEDMQ_DONE) {
        return fault;
    }
    put_u32_at(record, MAGIC);
    put_u32_at(record + 4, s->sequence + 1);
    put_u32_at(record + 8, s->incoming);
    put_u32_at(record + 12, fedmq_crc32(record, 12));
    if (s->flash->write(s->flash->context, slot, s->flash->room - FEDMQ_RECORD, record, sizeof record) != 0 ||
        !record_holds(record_of(s, slot))) {
        return FEDMQ_FLASH;
    }
    s->model = &s->of[slot];
    s->active = slot;
    s->sequence++;
    return FEDMQ_DONE;
}

static uint8_t finish(fedmq_slots *s, uint32_t id)
{
    if (in_force(s, id)) {
        return FEDMQ_DONE;
    }
    if (s->length == 0 || s->incoming != id) {
        return s->why != 0 && s->refused == id ? s->why : (uint8_t)FEDMQ_NOT_BEGUN;
    }
    if (s->received < s->length) {
        return FEDMQ_INCOMPLETE;
    }
    s->why = put_in_force(s);
    s->refused = id;
    s->length = s->received = 0;
    return s->why;
}

int fedmq_slots_take(fedmq_slots *s, const fedmq_decoder *d, uint16_t sensor)
{
    if (d->kind != FEDMQ_MODEL_CHUNK || d->head.sensor != sensor) {
        return 0;
    }
    const uint8_t *p = d->payload;
    s->answers = d->head.sequence;
    s->order = NONE;
    s->outcome = FEDMQ_UNKNOWN_ORDER;
    if (d->length < FEDMQ_ORDER_HEAD) {
        return 1;
    }
    uint32_t id = u32_at(p + 4), number = u32_at(p + 8);
    size_t behind = d->length - FEDMQ_ORDER_HEAD;
    s->order = p[0];
    if (p[0] == FEDMQ_CHUNK && behind > 0) {
        s->outcome = chunk(s, id, number, p + FEDMQ_ORDER_HEAD, behind);
    } else if (p[0] == FEDMQ_ASK && behind == 0) {
        s->outcome = FEDMQ_DONE;
    } else if (p[0] == FEDMQ_BEGIN && behind == 0) {
        s->outcome = begin(s, id, number);
    } else if (p[0] == FEDMQ_FINISH && behind == 0) {
        s->outcome = finish(s, id);
    }
    return 1;
}

/* --- answers ------------------------------------------------------------------------------------------------------ */

size_t fedmq_encode_ack(void *out, size_t room, const fedmq_head *head, const fedmq_slots *s)
{
    int any = s->model != NULL, coming = s->length != 0;
    const uint8_t said[4] = {s->order, s->outcome, any ? (uint8_t)s->active : (uint8_t)NONE, 0};
    fedmq_encoder e;
    fedmq_begin(&e, out, room, FEDMQ_ACK, head);
    fedmq_put(&e, said, sizeof said);
    fedmq_put_u32(&e, s->answers);
    fedmq_put_u32(&e, any ? s->model->id : 0);
    fedmq_put_u32(&e, any ? s->model->version : 0);
    fedmq_put_u32(&e, coming ? s->incoming : 0);
    fedmq_put_u32(&e, s->received);
    fedmq_put_u32(&e, s->flash->room - FEDMQ_RECORD);
    return fedmq_end(&e);
}

size_t fedmq_encode_score(void *bytes, size_t room, const fedmq_head *head, const fedmq_model *m, uint64_t taken_us,
                          const int8_t *out, int32_t score)
{
    uint16_t count = m->result == FEDMQ_ANOMALY ? (uint16_t)1 : (uint16_t)m->outputs;
    const uint8_t told[4] = {m->result, 0, (uint8_t)count, (uint8_t)(count >> 8)};
    fedmq_encoder e;
    fedmq_begin(&e, bytes, room, FEDMQ_SCORE, head);
    fedmq_put_u32(&e, (uint32_t)taken_us);
    fedmq_put_u32(&e, (uint32_t)(taken_us >> 32));
    fedmq_put_u32(&e, m->id);
    fedmq_put_u32(&e, m->result_scale);
    fedmq_put(&e, told, sizeof told);
    if (m->result == FEDMQ_ANOMALY) {
        fedmq_put_u32(&e, (uint32_t)score);
    } else {
        fedmq_put(&e, out, count);
    }
    return fedmq_end(&e);
}
